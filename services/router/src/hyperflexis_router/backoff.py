"""How long to wait before dialling again."""

from __future__ import annotations

FIRST_S = 0.1
LIMIT_S = 1.0


class Backoff:
    """100, 100, 200, 400, 800, 1,000, … milliseconds, until something worked."""

    def __init__(self) -> None:
        self._failures = 0

    def succeeded(self) -> None:
        self._failures = 0

    def next_s(self) -> float:
        delay = FIRST_S if self._failures == 0 else min(LIMIT_S, FIRST_S * 2 ** min(self._failures - 1, 10))
        self._failures += 1
        return delay
