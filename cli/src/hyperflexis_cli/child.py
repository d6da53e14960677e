"""One service of a local stack as a child process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

READY = re.compile(r"^ready service=(?P<service>\S+) id=(?P<id>\S+) address=(?P<address>\S+)\s*$")
LOG_TAIL_LINES = 15


class StackError(Exception):
    """The stack cannot start, or a process of it could not be found; the message says what to do or where to look."""


class Child:
    """Starts, waits for `ready`, signals, and stops one process. It may be started again after it ended."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_path: Path,
        environment: Mapping[str, str],
        *,
        stop_s: float = 8.0,
        prints_ready: bool = True,
    ) -> None:
        """`stop_s`: from SIGTERM to SIGKILL. `prints_ready` = it says so on stdout (see READY)."""
        self.name = name
        self.log_path = log_path
        self.service_id = ""
        self.address = ""
        self._command = list(command)
        self._environment = dict(environment)
        self._stop_s = stop_s
        self._prints_ready = prints_ready
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] | None = None

    @property
    def pid(self) -> int | None:
        """None unless it runs."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def state(self) -> str:
        """new, starting, ready, or how it ended."""
        if self._process is None:
            return "new"
        if self._process.returncode is None:
            return "ready" if self._ready is not None and self._ready.done() else "starting"
        code = self._process.returncode
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited {code}"

    async def start(self, timeout_s: float) -> None:
        """Starts it and waits until it is ready. Raises StackError with the end of its log."""
        await self._spawn()
        assert self._process is not None and self._ready is not None
        ended = asyncio.create_task(self._process.wait())
        try:
            either: set[asyncio.Future[Any]] = {ended, self._ready}
            await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
        if self.running and self._ready.done():
            return
        how = self.state if not self.running else f"not ready after {timeout_s:g} s"
        await self.stop()
        raise StackError(f"{self.name} did not start ({how}); the end of {self.log_path}:\n{self.log_tail()}")

    async def _spawn(self) -> None:
        if self.running:
            raise StackError(f"{self.name} is running")
        await self._finish_drain()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self._environment,
                # Ctrl-C on the terminal goes to the stack alone, which ends the others in order.
                start_new_session=True,
            )
        self._ready = asyncio.get_running_loop().create_future()
        if not self._prints_ready:
            self._ready.set_result(None)
        assert self._process.stdout is not None
        self._drain = asyncio.create_task(self._copy(self._process.stdout, self._ready), name=f"log of {self.name}")

    async def _copy(self, lines: asyncio.StreamReader, ready: asyncio.Future[None]) -> None:
        with self.log_path.open("ab") as log:
            while line := await _read_line(lines):
                log.write(line)
                log.flush()
                match = READY.match(line.decode("utf-8", "replace"))
                if match and not ready.done():
                    self.service_id, self.address = match["id"], match["address"]
                    ready.set_result(None)

    def send(self, number: signal.Signals) -> None:
        """Raises StackError where it does not run."""
        if self._process is None or self._process.returncode is not None:
            raise StackError(f"{self.name} does not run ({self.state})")
        _signal(self._process.pid, number)

    async def wait(self) -> None:
        """Until it has ended."""
        if self._process is not None:
            await self._process.wait()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to who stays."""
        if self._process is not None and self._process.returncode is None:
            # A stopped process (SIGSTOP) would not even see the signal.
            for number in (signal.SIGTERM, signal.SIGCONT):
                _signal(self._process.pid, number)
            try:
                async with asyncio.timeout(self._stop_s):
                    await self._process.wait()
            except TimeoutError:
                _signal(self._process.pid, signal.SIGKILL)
                await self._process.wait()
        await self._finish_drain()

    async def _finish_drain(self) -> None:
        """What it printed last is in the log; a pipe that its children keep open is left."""
        if self._drain is not None:
            await asyncio.wait({self._drain}, timeout=0.5)
            self._drain.cancel()
            await asyncio.wait({self._drain})
            self._drain = None

    def log_tail(self) -> str:
        """The last lines of its log."""
        try:
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            lines = []
        return "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:]) or "  (empty)"


def _signal(pid: int, number: signal.Signals) -> None:
    """Past subprocess, whose send_signal() may collect the exit status that asyncio waits for."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def _read_line(lines: asyncio.StreamReader) -> bytes:
    """A line, or a piece of one that is too long for the reader; empty at the end."""
    try:
        return await lines.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as overrun:
        return await lines.read(max(overrun.consumed, 1))
