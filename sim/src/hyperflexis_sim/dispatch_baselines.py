"""Dispatch policies of other systems, as baselines: power of two choices, llm-d's two, NVIDIA Dynamo's.

Each is rebuilt from its source's rules on our own `WorkerLoads`. Those loads count what was sent since the last report,
which favours them: most of the originals read scraped metrics. No prefix cache is modelled unless hits are given.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hyperflexis_scheduler.core.dispatch_policy import Ask, Choice
from hyperflexis_scheduler.core.loads import (
    KV_TOKENS,
    KV_USED,
    QUEUED_TOKENS,
    REQUESTS,
    RUNNING,
    Floats,
    Slots,
    WorkerLoads,
)
from hyperflexis_sim.chance import Chance
from hyperflexis_sim.forecast import Forecast

Hits = Callable[[Ask, Slots], Floats]
"""[len(among)] Prompt tokens that each worker has in its prefix cache."""
UNPROMISED_US = 1e12
"""No SLO counts as longer: headrooms stay finite."""


class PowerOfTwo:
    """The less loaded of two workers taken by chance (Mitzenmacher 2001; AIBrix power_of_two)."""

    def __init__(self, seed: int = 0) -> None:
        self._chance = Chance(seed)

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        first = self._chance.below(len(among))
        second = first
        if len(among) > 1:
            second = (first + 1 + self._chance.below(len(among) - 1)) % len(among)
        one, other = loads.get(int(among[first]), REQUESTS), loads.get(int(among[second]), REQUESTS)
        at = second if other < one else first
        return Choice(int(among[at]), "power_of_two", {"requests": min(one, other), "other": max(one, other)})


class LlmdDefault:
    """llm-d / Gateway API inference extension without configuration: 2 queue + 2 KV + 3 prefix, ties by chance."""

    def __init__(self, seed: int = 0, hits: Hits | None = None) -> None:
        self._chance = Chance(seed)
        self._hits = hits

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        waiting = np.maximum(loads.of(REQUESTS, among) - loads.of(RUNNING, among), 0.0)
        most, least = float(waiting.max()), float(waiting.min())
        queue = (most - waiting) / (most - least) if most > least else np.ones(len(among))
        kv = 1 - loads.of(KV_USED, among) / np.maximum(loads.of(KV_TOKENS, among), 1.0)
        score = 2 * queue + 2 * kv
        if self._hits is not None:
            score = score + 3 * self._hits(ask, among) / max(ask.prefill_tokens, 1)
        at = _one_of_largest(score, self._chance)
        return Choice(int(among[at]), "llmd_score", {"score": float(score[at]), "waiting": float(waiting[at])})


class LlmdHeadroom:
    """llm-d's routing by predicted latency: the worker whose predicted TTFT and TPOT leave the least headroom.

    One request in a hundred explores the workers that have none, if there are any. Where none has any: idle workers,
    then those that break only TPOT, only TTFT, both; the least broken of the first such group. Its learned predictor is
    our step-time model; its prefix gate never opens, as there are no prefix hits. The weights are its defaults.
    """

    def __init__(
        self,
        step_tokens: int,
        prefer: str = "least",
        seed: int = 0,
        ttft_weight: float = 0.8,
        tpot_weight: float = 0.2,
        explore_one_in: int = 100,
    ) -> None:
        if prefer not in ("least", "most"):
            raise ValueError(f"unknown preference {prefer!r}; known: least, most")
        self._step_tokens = step_tokens
        self._most = prefer == "most"
        self._chance = Chance(seed)
        self._weights = ttft_weight, tpot_weight
        self._explore_one_in = explore_one_in

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        forecast = Forecast(loads, among, self._step_tokens)
        ttft_us = min(ask.ttft_us, UNPROMISED_US) - forecast.ttft_us(ask.age_us, ask.prefill_tokens)
        tpot_us = min(ask.tpot_us, UNPROMISED_US) - forecast.tpot_us(ask.prefill_tokens)
        late, slow = ttft_us < 0, tpot_us < 0
        broken = late | slow
        explores = self._chance.below(self._explore_one_in) == 0 and broken.any()
        if broken.all() or explores:
            idle = loads.of(REQUESTS, among) == 0
            rank = np.where(idle, 0, np.where(late, np.where(slow, 3, 2), 1))
            rank[~broken] = 4
            places = np.flatnonzero(rank == rank.min())
            score = self._score(ttft_us[places], tpot_us[places])
            at = int(places[score.argmax()])
            reason = "explore" if explores and not broken.all() else "least_broken"
        else:
            places = np.flatnonzero(~broken)
            score = self._score(ttft_us[places], tpot_us[places])
            at = int(places[score.argmax() if self._most else score.argmin()])
            reason = "most_headroom" if self._most else "least_headroom"
        numbers = {"ttft_headroom_us": float(ttft_us[at]), "tpot_headroom_us": float(tpot_us[at])}
        return Choice(int(among[at]), reason, numbers)

    def _score(self, ttft_us: Floats, tpot_us: Floats) -> Floats:
        return self._weights[0] * _normal(ttft_us) + self._weights[1] * _normal(tpot_us)


class DynamoKvCost:
    """NVIDIA Dynamo's KV router at temperature zero: prefill blocks still to do plus blocks decoded over, least wins.

    A worker's blocks are those of all requests sent there, as its own bookkeeping has them.
    """

    def __init__(
        self, seed: int = 0, block_tokens: int = 16, overlap_weight: float = 1.0, hits: Hits | None = None
    ) -> None:
        self._chance = Chance(seed)
        self._block_tokens = block_tokens
        self._overlap_weight = overlap_weight
        self._hits = hits

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        queued = loads.of(QUEUED_TOKENS, among)
        hits = np.zeros(len(among)) if self._hits is None else self._hits(ask, among)
        prefill = (ask.prefill_tokens - hits + queued) / self._block_tokens
        blocks = np.ceil((loads.of(KV_USED, among) + queued + ask.prefill_tokens - hits) / self._block_tokens)
        cost = self._overlap_weight * prefill + blocks
        at = _one_of_largest(-cost, self._chance)
        numbers = {"cost": float(cost[at]), "prefill_blocks": float(prefill[at]), "blocks": float(blocks[at])}
        return Choice(int(among[at]), "kv_cost", numbers)


def _one_of_largest(values: Floats, chance: Chance) -> int:
    ties = np.flatnonzero(values == values.max())
    return int(ties[chance.below(len(ties)) if len(ties) > 1 else 0])


def _normal(values: Floats) -> Floats:
    """From 0 at the smallest to 1 at the largest; 0 where they are all alike."""
    least = values.min()
    spread = values.max() - least
    return (values - least) / spread if spread > 0 else np.zeros_like(values)
