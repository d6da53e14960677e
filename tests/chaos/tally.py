"""What became of all requests, and how long their clients heard nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

SLOW_S = 20.0
STALLED_S = 30.0
"""Leases, graces, probes and waits for Snapshots come to about 15 s where each is needed once. A stream may be met
by one fault while it recovers from another, so that more than SLOW_S is told, and only more than this is damage."""
AFTERMATH_S = 5.0
"""A fault that excuses silence still does so for this long after its end."""
NOTES_LIMIT = 50


class Silences:
    """The longest silence of each stream: from asking for the next event to having it.

    `longest_s` is as clients felt it. `counted_s` leaves out the time in which an excusing fault was in progress,
    whatever else happened then.
    """

    def __init__(self) -> None:
        self.longest_s: list[float] = []
        self.counted_s: list[float] = []
        self._excused: list[list[float]] = []

    @contextlib.contextmanager
    def excused(self) -> Iterator[None]:
        """For a fault that is known to keep streams waiting longer than anything else may."""
        span = [time.monotonic(), float("inf")]
        self._excused.append(span)
        try:
            yield
        finally:
            span[1] = time.monotonic() + AFTERMATH_S

    def add(self, longest_s: float, counted_s: float) -> None:
        """A stream has ended."""
        self.longest_s.append(longest_s)
        self.counted_s.append(counted_s)

    def counting_s(self, began: float, ended: float) -> float:
        """Of a silence that is over, without what is excused."""
        silent, at = 0.0, began
        for start, end in self._excused:  # in the order of their starts
            silent += max(min(start, ended) - at, 0.0)
            at = max(at, min(end, ended))
        return silent + max(ended - at, 0.0)


@dataclass
class Tally:
    """Each request ends as exactly one of finished, cancelled (by its own client), failed and stuck."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed_requests: int = 0
    stuck_requests: int = 0
    resumed: int = 0
    flips: int = 0
    """Roles that faults have changed."""
    tokens_compared: int = 0
    not_durable: int = 0
    lost_tokens: int = 0
    repeated_tokens: int = 0
    spliced: int = 0
    evicted_replacements: int = 0
    silences: Silences = field(default_factory=Silences)
    failures: list[str] = field(default_factory=list)

    @property
    def unaccounted(self) -> int:
        """Requests of which nobody can say what became of them. Neither sign is right."""
        return self.requests - self.finished - self.cancelled - self.failed_requests - self.stuck_requests

    @property
    def slow_requests(self) -> int:
        return sum(1 for silence in self.silences.counted_s if silence > SLOW_S)

    @property
    def stalled_requests(self) -> int:
        return sum(1 for silence in self.silences.counted_s if silence > STALLED_S)

    def note(self, text: str) -> None:
        if len(self.failures) < NOTES_LIMIT:
            self.failures.append(text[:400])

    def line(self) -> str:
        """Where it stands."""
        return (
            f"{self.requests} requests, {self.finished} finished, lost {self.lost_tokens}, "
            f"repeated {self.repeated_tokens}, spliced {self.spliced}, failed {self.failed_requests}, "
            f"stuck {self.stuck_requests}, evicted {self.evicted_replacements}, "
            f"longest silence {max(self.silences.longest_s, default=0.0):.1f} s"
        )
