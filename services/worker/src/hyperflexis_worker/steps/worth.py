"""What one attained request is worth now: the tier's weight, made larger or smaller by what was promised and paid.

Victims are chosen by work divided by worth, so that one number carries weights, guarantees, the reserve for long
prompts and the shares of tenants. Every factor is bounded: what is cheap enough is kept before anything dear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hyperflexis_worker.steps.prefill_queue import Floats, PrefillQueue, Waiting

MEMORY_US = 5e6
"""Prefill time over which shares are remembered."""
TENANT_BOUND = 16.0
"""A tenant's requests count as if it had had at least, and at most, so many times less or more than an equal share."""
TENANTS = 1_024
"""Of a tier, before those are forgotten who had next to nothing lately."""
GUARANTEE_BOUND = 8.0
"""A guarantee makes a request count at most so many times more: it displaces other dear work, not the cheap."""
GUARANTEE_GAIN = 0.3
"""How much harder a guarantee pulls after each request, for a share that is short by one."""
GUARANTEE_MEMORY = 200
"""Requests that a tier's attained share looks back on."""


@dataclass(frozen=True, slots=True)
class WorthRules:
    guarantees: Mapping[str, float] = field(default_factory=dict)
    """By tier: the share of its requests that is to be in time for a first token, at the expense of dear ones."""
    long_prompt_tokens: int = 0
    """Prompts of at least so many tokens share the reserve; 0 = there is none."""
    long_prompt_share: float = 0.0
    """Of prefill time, kept for them while they wait."""


class Worth:
    """`of` those who wait; `served` and `settled` tell what was done for whom."""

    def __init__(self, rules: WorthRules | None = None) -> None:
        self.rules = rules or WorthRules()
        self._unit = 1.0
        """What a microsecond of prefill adds now: older ones count less."""
        self._tiers: dict[str, _Shares] = {}
        self._total = 0.0
        self._long = 0.0
        self._kept: dict[str, float] = {}
        self._boost: dict[str, float] = {}

    def of(self, queue: PrefillQueue) -> Floats:
        """[len(queue)]"""
        worth = queue.weight.copy()
        for tier, boost in self._boost.items():
            index = queue.tiers.get(tier)
            if index is not None and boost > 1:
                worth[queue.tier == index] *= boost
        if len(queue.tenants) > 1:
            self._share_tenants(queue, worth)
        rules = self.rules
        if rules.long_prompt_share > 0 and self._long < rules.long_prompt_share * self._total:
            worth[queue.prompt_tokens >= rules.long_prompt_tokens] = np.inf
        return worth

    def served(self, request: Waiting, prefill_us: float) -> None:
        """So much prefill was done for it."""
        self._unit *= math.exp(prefill_us / MEMORY_US)
        amount = prefill_us * self._unit
        self._tiers.setdefault(request.tier, _Shares()).add(request.tenant, amount)
        self._total += amount
        if self.rules.long_prompt_tokens and request.prompt_tokens >= self.rules.long_prompt_tokens:
            self._long += amount
        if self._unit > 1e100:
            self._rescale()

    def settled(self, tier: str, kept: bool) -> None:
        """A request of the tier has its first token, or was given up."""
        if kept and tier in self._tiers:
            self._tiers[tier].requests += self._unit
        guarantee = self.rules.guarantees.get(tier)
        if guarantee is None:
            return
        share = self._kept.get(tier, guarantee)
        share += (kept - share) / GUARANTEE_MEMORY
        self._kept[tier] = share
        boost = self._boost.get(tier, 1.0) * math.exp(GUARANTEE_GAIN * (guarantee - share))
        self._boost[tier] = min(max(boost, 1.0), GUARANTEE_BOUND)

    def _share_tenants(self, queue: PrefillQueue, worth: Floats) -> None:
        """Within a tier, who had more than an equal share of its prefill counts less, who had less counts more; those
        who wait count as much together as they would otherwise, so that no tier gains by the number of its tenants."""
        tiers, tenants, names = queue.tier, queue.tenant, list(queue.tenants)
        for tier, index in queue.tiers.items():
            rows, shares = tiers == index, self._tiers.get(tier)
            if shares is None or not rows.any():
                continue
            here, places = np.unique(tenants[rows], return_inverse=True)
            factors = shares.factors([names[tenant] for tenant in here.tolist()], self._unit)[places]
            worth[rows] *= factors / factors.mean()

    def _rescale(self) -> None:
        for shares in self._tiers.values():
            shares.rescale(self._unit)
        self._total /= self._unit
        self._long /= self._unit
        self._unit = 1.0


class _Shares:
    """What each tenant of a tier had."""

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._total = 0.0
        self._limit = TENANTS
        self.requests = 0.0
        """Served; older ones count less, as what they had does."""

    def add(self, tenant: str, amount: float) -> None:
        self._had[tenant] = self._had.get(tenant, 0.0) + amount
        self._total += amount
        if len(self._had) > self._limit:
            least = 1e-3 * self._total / len(self._had)
            self._had = {name: had for name, had in self._had.items() if had > least}
            self._limit = max(TENANTS, 2 * len(self._had))

    def factors(self, here: Sequence[str], unit: float) -> Floats:
        """[len(here)] How much more, or less, each of these counts than it would alone.

        One request more or less is no matter: where tenants have few each, they differ by chance."""
        least = self._total / max(len(self._had), 1) / TENANT_BOUND
        sharing = {name for name, had in self._had.items() if had > least}.union(here)
        fair = self._total / len(sharing)
        had = np.array([self._had.get(name, 0.0) for name in here])
        one = self._total / self.requests * unit if self.requests else 0.0
        factors: Floats = np.clip((fair + one) / (had + one + fair / TENANT_BOUND), 1 / TENANT_BOUND, None) ** 2
        return factors

    def rescale(self, unit: float) -> None:
        self._had = {name: had / unit for name, had in self._had.items() if had / unit > 1.0}
        self._total /= unit
        self.requests /= unit
