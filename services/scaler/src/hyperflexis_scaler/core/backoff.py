"""How long to wait before replacing what dies."""

from __future__ import annotations

FIRST_US = 1_000_000
LONGEST_US = 30_000_000
LIVED_US = 60_000_000
"""An instance that lived this long was no crash-loop."""
LOOP_FAILURES = 3
"""From so many short lives in a row on, a group is said to crash-loop."""


class BackOff:
    """1 s after the first short life, doubling to 30 s; one that lived for 60 s starts it anew."""

    def __init__(self) -> None:
        self.failures = 0
        self.until_us = 0

    def failed(self, now_us: int, lived_us: int) -> None:
        """Something of the group died or did not start. What fails during a back-off is the same incident."""
        if now_us < self.until_us:
            return
        self.failures = 1 if lived_us >= LIVED_US else self.failures + 1
        self.until_us = now_us + min(FIRST_US << min(self.failures - 1, 8), LONGEST_US)

    def waits(self, now_us: int) -> bool:
        return now_us < self.until_us

    def loops(self, now_us: int) -> bool:
        """Crash-looping, as far as is known: short lives in a row, the last of them not long ago."""
        return self.failures >= LOOP_FAILURES and now_us < self.until_us + LIVED_US
