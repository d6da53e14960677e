"""Which worker gets a request. One class a policy; each says why and with which numbers.

A policy sees what is asked (`Ask`) and what every worker has to do (`WorkerLoads`), no sessions and no clock: the same
objects run in the scheduler and in the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from hyperflexis_scheduler.core.loads import C0, QUEUED_TOKENS, QUEUED_US, REQUESTS, SHARE, Floats, Slots, WorkerLoads


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
    cached_tokens: Floats | None = None
    """[len(among)] Of those to prefill, what each candidate keeps already, or reads from a peer; None = nobody
    anything."""
    read_us: Floats | None = None
    """[len(among)] Until what it reads is there; None = nobody reads."""


class Choice(NamedTuple):
    slot: int
    reason: str
    numbers: Mapping[str, float]
    """What this policy alone went by; `forecast` is told beside it whatever the policy."""


class DispatchPolicy(Protocol):
    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        """One of the slots, of which there is at least one."""
        ...


class SchedulerPolicy(DispatchPolicy, Protocol):
    """One that says, too, in which order requests wait that have no place to go."""

    def hold_key(self, deadline_us: int) -> int:
        """Smallest first; equal ones go in order of arrival."""
        ...


def in_time(ask: Ask, loads: WorkerLoads, among: Slots) -> Slots:
    """Those of the slots where the first token would not come too late: what is queued there, the request's own
    prefill, and the step that makes the token."""
    prefill_us = loads.of(QUEUED_US, among) + loads.prefill_us(ask.prefill_tokens, among)
    needed_us = prefill_us / loads.of(SHARE, among) + loads.of(C0, among)
    return among[ask.age_us + needed_us <= ask.ttft_us]


def forecast(ask: Ask, loads: WorkerLoads, slot: int) -> dict[str, float]:
    """What a request finds on a worker, and when its first token comes if it is served after what is queued there."""
    queued_us, share = loads.get(slot, QUEUED_US), loads.get(slot, SHARE)
    own_us = float(loads.prefill_us(ask.prefill_tokens, np.array([slot]))[0])
    return {
        "requests": loads.get(slot, REQUESTS),
        "queued_prefill_us": queued_us,
        "own_prefill_us": own_us,
        "prefill_share": share,
        "predicted_ttft_us": ask.age_us + (queued_us + own_us) / share,
    }


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
    """The worker whose queue and the request's own prefill would be done first, by each one's own step-time model and
    the share of its time that prefill gets there. Sent at once; who is served when is the worker's choice."""

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        cached = 0.0 if ask.cached_tokens is None else ask.cached_tokens
        own_us = loads.prefill_us(ask.prefill_tokens, among, cached)
        queued_us = loads.of(QUEUED_US, among)
        share = loads.of(SHARE, among)
        requests = loads.of(REQUESTS, among)
        waits_us = queued_us / share if ask.read_us is None else np.maximum(queued_us / share, ask.read_us)
        # A request costs a millisecond beyond its tokens: it tells idle workers apart, and spreads the decodes.
        until_us = waits_us + own_us / share + 1_000.0 * requests
        slot = int(among[until_us.argmin()])
        return Choice(slot, "earliest_first_token", {"candidates": len(among)})

    def hold_key(self, deadline_us: int) -> int:
        return deadline_us


POLICIES: dict[str, Callable[[], SchedulerPolicy]] = {
    "hyperflexis": EarliestFirstToken,
    "round_robin": RoundRobin,
    "least_requests": least_requests,
    "jsq": least_queued_tokens,
}
"""Those of the live scheduler, by the name in its settings."""
