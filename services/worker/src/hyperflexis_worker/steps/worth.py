"""What one attained request is worth now: the tier's weight, made larger or smaller by what was promised and paid.

Victims are chosen by work divided by worth, so that one number carries weights, guarantees, the reserve for long
prompts and the shares of tenants. Every factor is bounded: what is cheap enough is kept before anything dear.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hyperflexis_worker.steps.prefill_queue import Floats, PrefillQueue, Waiting

MEMORY_US = 5e6
"""Prefill time over which shares are remembered."""
TENANT_BOUND = 16.0
"""A tenant's requests count at most so many times more, or less, than another's of the same tier."""
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
        self._tenants: dict[tuple[str, str], float] = {}
        self._tier_total: dict[str, float] = {}
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
        key = (request.tier, request.tenant)
        self._tenants[key] = self._tenants.get(key, 0.0) + amount
        self._tier_total[request.tier] = self._tier_total.get(request.tier, 0.0) + amount
        self._total += amount
        if self.rules.long_prompt_tokens and request.prompt_tokens >= self.rules.long_prompt_tokens:
            self._long += amount
        if self._unit > 1e100:
            self._rescale()

    def settled(self, tier: str, kept: bool) -> None:
        """A request of the tier has its first token, or was given up."""
        guarantee = self.rules.guarantees.get(tier)
        if guarantee is None:
            return
        share = self._kept.get(tier, guarantee)
        share += (kept - share) / GUARANTEE_MEMORY
        self._kept[tier] = share
        boost = self._boost.get(tier, 1.0) * math.exp(GUARANTEE_GAIN * (guarantee - share))
        self._boost[tier] = min(max(boost, 1.0), GUARANTEE_BOUND)

    def _share_tenants(self, queue: PrefillQueue, worth: Floats) -> None:
        """Within a tier, who had more than an equal share of its prefill counts less, who had less counts more."""
        tiers, tenants = queue.tier, queue.tenant
        names = {index: name for name, index in queue.tenants.items()}
        for tier, index in queue.tiers.items():
            rows = tiers == index
            here = {names[int(tenant)] for tenant in np.unique(tenants[rows])}
            total = self._tier_total.get(tier, 0.0)
            had = {
                name for (of_tier, name), amount in self._tenants.items() if of_tier == tier and amount > total / 100
            }
            if len(here | had) < 2 or total <= 0:
                continue
            fair = total / len(here | had)
            for name in here:
                amount = max(self._tenants.get((tier, name), 0.0), fair / TENANT_BOUND)
                worth[rows & (tenants == queue.tenants[name])] *= max(fair / amount, 1 / TENANT_BOUND) ** 2

    def _rescale(self) -> None:
        self._tenants = {k: v / self._unit for k, v in self._tenants.items() if v / self._unit > 1.0}
        self._tier_total = {tier: value / self._unit for tier, value in self._tier_total.items()}
        self._total /= self._unit
        self._long /= self._unit
        self._unit = 1.0
