"""What shows from outside that something has happened to a process: its state, its log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.02


async def until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Waits for the condition; False where it does not come true in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(POLL_S)
            return True
    return False


def is_stopped(pid: int) -> bool:
    """Is it under SIGSTOP?"""
    try:
        # The name before the state is in brackets and may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def send(pid: int, number: signal.Signals) -> bool:
    """False where no such process is left."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


async def freeze(pid: int, timeout_s: float = 2.0) -> bool:
    """SIGSTOP; True once it has stopped."""
    return send(pid, signal.SIGSTOP) and await until(lambda: is_stopped(pid), timeout_s)


class LogMark:
    """The end of a log at one moment: `saw` what has been written since."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0

    def has(self, *words: str) -> bool:
        """Does a line written since hold all of them?"""
        if not self._path.exists():
            return False
        with self._path.open("rb") as log:
            log.seek(self._offset)
            lines = log.read().decode("utf-8", "replace").splitlines()
        return any(all(word in line for word in words) for line in lines)

    async def saw(self, *words: str, timeout_s: float) -> bool:
        return await until(lambda: self.has(*words), timeout_s)
