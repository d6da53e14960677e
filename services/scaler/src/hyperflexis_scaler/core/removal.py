"""Taking one instance away: drain, then SIGTERM, then SIGKILL until it is gone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from hyperflexis_scaler.core.action import Kind, Outcome

RETRY_US = 1_000_000
"""Between two tries of the same step."""


class Phase(IntEnum):
    DRAINING = 1
    STOPPING = 2
    KILLING = 3


@dataclass(slots=True)
class Removal:
    """The steps of one removal. Phases only go forward."""

    action_id: str
    kind: Kind
    """STOP for what is no longer wanted, REAP for what should not be there."""
    reason: str
    phase: Phase
    deadline_us: int
    """The end of the phase; KILLING has none."""
    stop_us: int
    next_try_us: int = 0
    answered: bool = False

    def advance(self, phase: Phase, now_us: int) -> None:
        """Goes on to a later phase; an earlier or the same one changes nothing."""
        if phase > self.phase:
            self.phase = phase
            self.deadline_us = now_us + self.stop_us
            self.next_try_us = now_us
            self.answered = False

    def step(self, now_us: int, idle: bool) -> Kind | None:
        """The step to take now, if any. `idle`: the worker has nothing left to serve."""
        if self.phase is Phase.DRAINING and (idle or now_us >= self.deadline_us):
            self.advance(Phase.STOPPING, now_us)
        if self.phase is Phase.STOPPING and now_us >= self.deadline_us:
            self.advance(Phase.KILLING, now_us)
        if now_us < self.next_try_us or (self.answered and self.phase is not Phase.KILLING):
            return None
        self.next_try_us = now_us + RETRY_US
        return Kind.DRAIN if self.phase is Phase.DRAINING else self.kind

    def settled(self, kind: Kind, outcome: Outcome, now_us: int) -> None:
        """The answer to a step. An answer to a step of an earlier phase changes nothing."""
        if (kind is Kind.DRAIN) != (self.phase is Phase.DRAINING):
            return
        if outcome is Outcome.DONE:
            self.answered = True
        elif outcome is Outcome.MISSING and kind is Kind.DRAIN:
            self.advance(Phase.STOPPING, now_us)
