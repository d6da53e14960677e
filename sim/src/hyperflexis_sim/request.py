"""One request of a simulation: what it asks for, how far it is, what became of it. Times in microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperflexis_scheduler.core.request import BEST_EFFORT_TPOT_US, BEST_EFFORT_TTFT_US
from hyperflexis_sim.tiers import Promise

UNSERVED, RUNNING, FINISHED, REFUSED = range(4)


@dataclass(slots=True, eq=False)
class SimRequest:
    """Satisfies the worker core's `Waiting`; the dispatcher sees it too."""

    number: int
    arrival_us: float
    tier: str
    tenant: str
    prompt_tokens: int
    output_tokens: int
    """What it will turn out to make; no policy but a clairvoyant one may look."""
    ttft_us: float
    tpot_us: float
    max_gap_us: float
    weight: float
    max_tokens: int
    on_violation: str = "refuse"
    prefix: tuple[bytes, ...] = ()
    """Names of the full blocks of its prompt, each standing for all up to its end; none where nobody knows."""

    due_us: float = 0.0
    to_compute: int = 0
    computed: int = 0
    made: int = 0

    state: int = UNSERVED
    worker: int = -1
    dispatched: int = 0
    moves: int = 0
    """Times it was taken from a worker for an idle one."""
    migrations: int = 0
    """Times it went to another worker while it ran, hand-offs after prefill among them."""
    cached_tokens: int = 0
    """Of its prompt, found where it first began, those pulled among them."""
    pulled_tokens: int = 0
    """Read from a peer for its sake."""
    somewhere_tokens: int = 0
    """What the worker that had most of it had when it was last placed."""
    saved_us: float = 0.0
    """Of prefill, by its worker's model, as it was cached."""
    longest_move_us: float = 0.0
    """The longest pause between two tokens of which the first was made before such a move and the second after it."""
    first_us: float = -1.0
    last_us: float = -1.0
    worst_gap_us: float = 0.0
    late_tokens: int = 0
    """Tokens k that came after arrival + TTFT + k TPOT."""
    refused_us: float = -1.0
    downgraded_from: tuple[str, ...] = ()
    """Tiers whose promises were given up for it, in order."""
    best_effort: bool = False
    tier_promised: str = ""
    promised_ttft_us: float = 0.0
    """What its verdict is about, whatever it was downgraded to."""
    promised_tpot_us: float = 0.0

    def __post_init__(self) -> None:
        self.due_us = self.arrival_us + self.ttft_us
        self.to_compute = self.prompt_tokens
        self.tier_promised = self.tier
        self.promised_ttft_us, self.promised_tpot_us = self.ttft_us, self.tpot_us

    def fall_back(self, promises: Mapping[str, Promise]) -> bool:
        """Its promise cannot be kept, and it begins anew as its tier says, by the scheduler's own rule: with a looser
        one that it has not had, or with none. Its verdict stays about the first. False = it is refused."""
        kind, _, target = self.on_violation.partition(":")
        if kind == "refuse":
            return False
        if target in promises and target not in (*self.downgraded_from, self.tier):
            self._downgrade(promises[target])
        else:
            self.give_best_effort()
        return True

    def refuse(self, now_us: float) -> None:
        self.state, self.refused_us = REFUSED, now_us

    def _downgrade(self, promise: Promise) -> None:
        self.downgraded_from = (*self.downgraded_from, self.tier)
        self.tier, self.on_violation = promise.tier, promise.on_violation
        self.ttft_us, self.tpot_us = promise.ttft_us, promise.tpot_us
        self.max_gap_us, self.weight = promise.max_gap_us, promise.weight
        self._begin_anew()

    def give_best_effort(self) -> None:
        """Begins anew with no promise at all."""
        self.best_effort = True
        self.ttft_us, self.tpot_us = BEST_EFFORT_TTFT_US, max(self.tpot_us, BEST_EFFORT_TPOT_US)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.dispatched = 0
        self.due_us = self.arrival_us + self.ttft_us

    @property
    def downgraded(self) -> bool:
        return bool(self.downgraded_from)

    @property
    def mean_tpot_us(self) -> float:
        """After the first token; 0 with fewer than two."""
        return (self.last_us - self.first_us) / (self.made - 1) if self.made > 1 else 0.0

    @property
    def attained(self) -> bool:
        """As hyperflexis_common.verdict, in floating point."""
        return (
            self.state == FINISHED
            and not self.downgraded
            and self.first_us - self.arrival_us <= self.promised_ttft_us
            and self.mean_tpot_us <= self.promised_tpot_us
        )
