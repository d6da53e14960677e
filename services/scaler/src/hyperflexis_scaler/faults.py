"""Crashes on purpose, for the crash tests: HYPERFLEXIS_FAULTS="crash_after=<point>"."""

from __future__ import annotations

import os

VARIABLE = "HYPERFLEXIS_FAULTS"
POINTS = ("intent_written", "started", "state_written", "drained", "stopped")


class Faults:
    """Ends the process, as kill -9 would, the first time it passes the named point."""

    def __init__(self, crash_after: str = "") -> None:
        if crash_after and crash_after not in POINTS:
            raise ValueError(f"unknown point {crash_after!r}; points: {', '.join(POINTS)}")
        self._crash_after = crash_after

    @classmethod
    def from_environment(cls) -> Faults:
        """Raises ValueError for what it does not understand."""
        text = os.environ.get(VARIABLE, "")
        name, _, point = text.partition("=")
        if text and name != "crash_after":
            raise ValueError(f"{VARIABLE} must be crash_after=<point>, got {text!r}")
        return cls(point)

    def passed(self, point: str) -> None:
        if point == self._crash_after:
            os._exit(137)
