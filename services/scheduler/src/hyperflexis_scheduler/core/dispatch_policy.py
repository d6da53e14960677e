"""Which worker gets a request. One class a policy; each says why and with which numbers.

A policy sees what is asked (`Ask`) and what every worker has to do (`WorkerLoads`), no sessions and no clock: the same
objects run in the scheduler and in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from hyperflexis_common.turns import WORK_ORDER
from hyperflexis_scheduler.core.loads import (
    C0,
    PACE,
    PREFILL,
    QUEUED_TOKENS,
    QUEUED_US,
    REQUESTS,
    ROLE,
    SHARE,
    Floats,
    LoadView,
    Slots,
    WorkerLoads,
)
from hyperflexis_scheduler.core.step_share import LONGEST_US, StepShare

UNDER_WAY_US = LONGEST_US / 2
"""Of a step that has begun, what is left when a request comes: half of a long one."""
REQUEST_US = 1_000.0
"""What a request counts beyond its tokens: it tells idle workers apart."""
HARM_US = 300_000.0
"""What it counts that work on a worker takes as long again, for the decodes of a request. 100 ms do as well
(docs/scheduling.md)."""


class Ask(NamedTuple):
    """A request as the dispatcher sees it; times in microseconds."""

    prefill_tokens: int
    age_us: float
    """Since it arrived."""
    ttft_us: float
    tpot_us: float
    max_tokens: int
    tier: str = ""
    expected_tokens: float = 0.0
    """Output tokens that requests of this tier make on average; 0 = not known."""
    weight: float = 1.0
    """Worth of one attained request."""
    cached_tokens: Floats | None = None
    """[len(among)] Of those to prefill, what each candidate keeps already, or reads from a peer; None = nobody
    anything."""
    read_us: Floats | None = None
    """[len(among)] Until what it reads is there; None = nobody reads."""


class Choice(NamedTuple):
    slot: int
    reason: str
    numbers: Mapping[str, float]
    """What this policy alone went by; what was foretold is told beside it whatever the policy."""
    foretold: Mapping[str, float] | None = None
    """Prospect.of of that slot, where the policy looked at it anyway."""


class DispatchPolicy(Protocol):
    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        """One of the slots, of which there is at least one."""
        ...


class SchedulerPolicy(DispatchPolicy, Protocol):
    """One that says, too, in which order requests wait that have no place to go."""

    def hold_key(self, deadline_us: int) -> int:
        """Smallest first; equal ones go in order of arrival."""
        ...


class Prospect:
    """What a request would find on each of some workers, if it were sent there; all [n], in microseconds."""

    def __init__(self, ask: Ask, loads: LoadView) -> None:
        cached = 0.0 if ask.cached_tokens is None else ask.cached_tokens
        self._ask, self._loads = ask, loads
        self._queued_us = loads.of(QUEUED_US)
        self.requests = loads.of(REQUESTS)
        self.share = loads.of(SHARE)
        self.own_us = loads.prefill_us(ask.prefill_tokens, cached)
        decodes_us = loads.decode_us(ask.expected_tokens, ask.prefill_tokens)
        work_us = loads.of(PACE) * (self.own_us + decodes_us)
        self.turn_us: Floats = WORK_ORDER / ask.weight * work_us + (ask.ttft_us - ask.age_us)
        """From now (hyperflexis_common.turns)."""
        self.ahead_us = loads.queued_before_us(self.turn_us)
        """Of the prefill queued, what is served before it."""

        under_way_us = np.minimum((self._queued_us - self.ahead_us) / self.share, UNDER_WAY_US)
        waits_us = self.ahead_us / self.share + under_way_us
        self.waits_us: Floats = waits_us if ask.read_us is None else np.maximum(waits_us, ask.read_us)
        """Until its turn comes: what is ahead, a step under way with what comes later; or what it reads meanwhile."""
        self.until_us: Floats = self.waits_us + self.own_us / self.share
        """Until its first token: its own prefill too."""

    @property
    def ttft_us(self) -> Floats:
        return self._ask.age_us + self.until_us

    def of(self, at: int) -> dict[str, float]:
        """Those of one of the workers, for the decision."""
        loads = self._loads
        empty_step_us = float(loads.of(PACE)[at] * loads.of(C0)[at])
        too_long = self._ask.tpot_us <= empty_step_us and loads.of(ROLE)[at] != PREFILL
        return ({"empty_step_us": empty_step_us} if too_long else {}) | {
            "requests": float(self.requests[at]),
            "queued_prefill_us": float(self._queued_us[at]),
            "ahead_prefill_us": float(self.ahead_us[at]),
            "own_prefill_us": float(self.own_us[at]),
            "prefill_share": float(self.share[at]),
            "predicted_ttft_us": float(self.ttft_us[at]),
            "turn_us": float(self.turn_us[at]),
        }


def in_time(ask: Ask, loads: WorkerLoads, among: Slots) -> Slots:
    """Those of the slots where the first token would not come too late: what is served before it there, the request's
    own prefill, and the step that makes the token."""
    view = loads.view(among)
    return among[Prospect(ask, view).ttft_us + view.of(C0) <= ask.ttft_us]


class RoundRobin:
    """Each worker in turn."""

    def __init__(self) -> None:
        self._turn = 0

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        slot = int(among[self._turn % len(among)])
        self._turn += 1
        return Choice(slot, "round_robin", {"candidates": len(among)})

    def hold_key(self, deadline_us: int) -> int:
        return 0


class Least:
    """The worker with the least of one number; ties go in turn."""

    def __init__(self, field: int, reason: str) -> None:
        self._field = field
        self._reason = reason
        self._turn = 0

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        values = loads.of(self._field, among)
        least = float(values.min())
        ties = np.flatnonzero(values == least)
        slot = int(among[ties[self._turn % len(ties)]])
        self._turn += 1
        return Choice(slot, self._reason, {"candidates": len(among), self._reason.removeprefix("least_"): least})

    def hold_key(self, deadline_us: int) -> int:
        return 0


def least_requests() -> Least:
    """Fewest requests waiting or running."""
    return Least(REQUESTS, "least_requests")


def least_queued_tokens() -> Least:
    """Join the shortest queue, in prompt tokens (Splitwise's token JSQ)."""
    return Least(QUEUED_TOKENS, "least_queued_tokens")


class EarliestFirstToken:
    """The worker where the first token would come first, by each one's own step-time model, the share of its time that
    prefill gets there and what of its queue is served before; decodes that would lengthen everybody's wait count too.
    Sent at once; who is served when is the worker's choice."""

    def __init__(self, harm_us: float = HARM_US) -> None:
        self._harm_us = harm_us

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        view = loads.view(among)
        prospect, harm = Prospect(ask, view), _harm(ask, view)
        at = int(self._cost_us(prospect, harm).argmin())
        numbers = {"candidates": float(len(among)), "harm_us": self._harm_us * float(harm[at])}
        return Choice(int(among[at]), "earliest_first_token", numbers, prospect.of(at))

    def cost_us(self, ask: Ask, loads: LoadView) -> Floats:
        """[n] The least is chosen."""
        return self._cost_us(Prospect(ask, loads), _harm(ask, loads))

    def _cost_us(self, prospect: Prospect, harm: Floats) -> Floats:
        found: Floats = prospect.until_us + self._harm_us * harm + REQUEST_US * prospect.requests
        return found

    def hold_key(self, deadline_us: int) -> int:
        return deadline_us


def _harm(ask: Ask, loads: LoadView) -> Floats:
    """[n] How much longer work gets to take by its decodes (StepShare.harm)."""
    harm = StepShare(loads).harm(ask.prefill_tokens, ask.tpot_us)
    harm[loads.of(ROLE) == PREFILL] = 0.0  # it decodes elsewhere
    return harm


POLICIES: dict[str, Callable[[], SchedulerPolicy]] = {
    "hyperflexis": EarliestFirstToken,
    "round_robin": RoundRobin,
    "least_requests": least_requests,
    "jsq": least_queued_tokens,
}
"""Those of the live scheduler, by the name in its settings."""
