"""What lies between client, dispatcher and engine; microseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Delays:
    """The defaults were measured on the live stack (bench/control.py), rounded up. What is drawn is drawn by the
    request's number, so that it does not depend on what else happens."""

    dispatch_us: float = 2_000.0
    """Before the dispatcher -> in the worker's queue."""
    report_us: float = 2_000.0
    """Report made -> known to the scheduler."""
    report_every_us: float = 100_000.0
    """Least time between two reports of one worker."""
    submits_us: Sequence[float] = ()
    """Sent -> before the dispatcher, drawn from these: two sent close together may change places; none = at once."""
    returns_us: Sequence[tuple[float, float]] = ()
    """First and last token made -> at the client, drawn from these; none = at once."""

    def submit_us(self, seed: int, number: int) -> float:
        return self.submits_us[_drawn(seed, number, len(self.submits_us))] if self.submits_us else 0.0

    def return_us(self, seed: int, number: int) -> tuple[float, float]:
        return self.returns_us[_drawn(seed, number, len(self.returns_us))] if self.returns_us else (0.0, 0.0)


def _drawn(seed: int, number: int, among: int) -> int:
    return Random(f"{seed}/{number}/{among}").randrange(among)
