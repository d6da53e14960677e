"""Faults on demand, for the suites that prove what happens under them. Off unless HYPERFLEXIS_FAULTS is set.

HYPERFLEXIS_FAULTS is a comma-separated list: `signals` lets SIGUSR1 drop the next reply of Redis (the write has
happened; the log says when); `crash_after=<point>` ends the process the first time it passes the point, one of POINTS.
"""

from __future__ import annotations

import asyncio
import os
import signal

import structlog

log = structlog.get_logger(__name__)

VARIABLE = "HYPERFLEXIS_FAULTS"
POINTS = (
    "validated", "recorded", "accepted", "submitted", "placed", "started", "first_token", "journaled", "finished",
    "closed",
)  # fmt: skip
CRASHED = 137


class Faults:
    """What shall go wrong in this process."""

    def __init__(self, spec: str | None = None) -> None:
        parts = [part for part in (os.environ.get(VARIABLE, "") if spec is None else spec).split(",") if part]
        self._crash_after = next((part.partition("=")[2] for part in parts if part.startswith("crash_after=")), "")
        if self._crash_after and self._crash_after not in POINTS:
            raise ValueError(f"{VARIABLE}: unknown point {self._crash_after!r}; points: {', '.join(POINTS)}")
        self._signals = "signals" in parts
        self._replies_to_drop = 0

    def listen(self) -> None:
        """Installs the signal handler, where asked for."""
        if self._signals:
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.drop_next_reply)

    def drop_next_reply(self) -> None:
        self._replies_to_drop += 1

    def take_reply(self) -> bool:
        """Must the reply that has just come be dropped?"""
        if self._replies_to_drop == 0:
            return False
        self._replies_to_drop -= 1
        log.warning("dropped on purpose", message="redis_reply")
        return True

    def passed(self, point: str) -> None:
        if point == self._crash_after:
            os._exit(CRASHED)
