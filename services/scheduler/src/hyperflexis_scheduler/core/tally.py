"""Counters since this leader began."""

from __future__ import annotations

from collections import Counter

from hyperflexis.scheduler.v1 import router_session_pb2, scheduler_service_pb2
from hyperflexis_common.output_lengths import OutputLengths

MAX_TIERS = 64
OTHER = "other"


class Tally:
    def __init__(self) -> None:
        self._tiers: dict[str, scheduler_service_pb2.TierLoad] = {}
        self._lengths = OutputLengths()
        self.placements: Counter[str] = Counter()
        """By reason."""
        self.refusals: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.flips: Counter[str] = Counter()
        self.moves_begun: Counter[str] = Counter()
        self.moves_done: Counter[str] = Counter()
        self.moves_failed: Counter[str] = Counter()

    def tier(self, name: str) -> scheduler_service_pb2.TierLoad:
        """The counters of a tier; beyond a bound, tiers share one entry."""
        if name not in self._tiers and len(self._tiers) >= MAX_TIERS:
            name = OTHER
        return self._tiers.setdefault(name, scheduler_service_pb2.TierLoad(tier=name))

    def output_tokens(self, name: str) -> float:
        """That requests of this tier make on average."""
        return self._lengths.mean(self.tier(name).tier)

    def finished(self, name: str, prompt_tokens: int, output_tokens: int) -> None:
        """`output_tokens`: 0 where nobody has said how many."""
        tier = self.tier(name)
        tier.finished += 1
        tier.prompt_tokens += prompt_tokens
        tier.output_tokens += output_tokens
        if output_tokens:
            self._lengths.learn(tier.tier, output_tokens)

    def refused(self, tier: str, reason: router_session_pb2.RefusalReason.ValueType) -> None:
        self.tier(tier).refused += 1
        self.refusals[router_session_pb2.RefusalReason.Name(reason).removeprefix("REFUSAL_REASON_").lower()] += 1

    def moves(self) -> scheduler_service_pb2.MoveTally:
        return scheduler_service_pb2.MoveTally(
            begun=self.moves_begun.total(), done=self.moves_done.total(), failed=self.moves_failed.total()
        )

    def tiers(self) -> list[scheduler_service_pb2.TierLoad]:
        return list(self._tiers.values())
