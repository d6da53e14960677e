"""Time as an argument. Cores never read a clock; shells read one of these.

All times inside a process are integer microseconds of a monotonic clock whose zero means nothing to any
other process.
"""

from __future__ import annotations

import os
import time
from typing import Protocol


class Clock(Protocol):
    def now_us(self) -> int:
        """Microseconds on this process's monotonic clock."""
        ...


class SystemClock:
    """The machine's monotonic clock, moved by HYPERFLEXIS_CLOCK_OFFSET_US.

    The offset exists to prove that no absolute time crosses a process border: the fault suites run every
    process seconds apart.
    """

    def __init__(self, offset_us: int | None = None) -> None:
        self._offset_us = int(os.environ.get("HYPERFLEXIS_CLOCK_OFFSET_US", "0")) if offset_us is None else offset_us

    def now_us(self) -> int:
        return time.monotonic_ns() // 1_000 + self._offset_us


class FakeClock:
    """A clock that only its test moves."""

    def __init__(self, start_us: int = 1_000_000) -> None:
        self._now_us = start_us

    def now_us(self) -> int:
        return self._now_us

    def advance(self, by_us: int) -> int:
        if by_us < 0:
            raise ValueError("time does not go back")
        self._now_us += by_us
        return self._now_us
