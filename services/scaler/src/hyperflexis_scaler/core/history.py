"""The last things done, for people to read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from hyperflexis_scaler.core.action import Action, Outcome

KEPT = 100


@dataclass(frozen=True, slots=True)
class Done:
    action: Action
    at_us: int
    outcome: Outcome
    message: str = ""


class History:
    """Newest last; the oldest fall out."""

    def __init__(self) -> None:
        self._done: deque[Done] = deque(maxlen=KEPT)

    def add(self, done: Done) -> None:
        """A repeated try of the same step with the same outcome replaces the one before."""
        if self._done and (self._done[-1].action, self._done[-1].outcome) == (done.action, done.outcome):
            self._done.pop()
        self._done.append(done)

    def __iter__(self) -> Iterator[Done]:
        return iter(self._done)
