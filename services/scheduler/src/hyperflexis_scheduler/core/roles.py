"""How many workers prefill only, at this moment; the rest does both. Pure; a flip is free and effective at once.

A worker without decodes makes long steps, and what a step costs beside its tokens is paid less often there than where
the tightest TPOT sets the pace. So as long as the others can hold all decodes, each worker that only prefills is that
much more prefill. Where nothing waits for prefill there is nothing to gain, and all are MIXED: decodes then have every
worker to themselves. MIXED workers prefill too, whatever they have left, so that no split starves either side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hyperflexis_scheduler.core.loads import (
    BASE,
    KV_TOKENS,
    KV_USED,
    MIXED,
    PACE,
    PREFILL,
    QUEUED_US,
    ROLE,
    SHARE,
    TIGHTEST,
    Floats,
    Slots,
    WorkerLoads,
)
from hyperflexis_scheduler.core.step_share import LONGEST_US, StepShare


class Roles(NamedTuple):
    roles: Mapping[int, int]
    """By slot: only those that change."""
    reason: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RoleRules:
    held_share: float = 0.5
    """Of the tightest TPOT, what decodes may take on those that hold them all, for one more to be PREFILL ..."""
    held_more: float = 0.15
    """... and by how much more for one to be MIXED again."""
    queued_us: float = 1.0
    """Queued prefill of a worker, in tightest TPOTs, from which on it is worth it ..."""
    queued_less: float = 0.1
    """... and below which it is not any more."""
    kv_share: float = 0.8
    """Of the pools of those that hold the decodes, what may be in use."""
    least_gain: float = 0.1
    """Of a worker's prefill, what one more PREFILL worker must add."""
    rest_us: float = 1_000_000.0
    """Between two flips of a pool."""
    memory_us: float = 3_000_000.0
    """Time constant of what is seen: a queue that comes and goes within it is no reason."""


class RoleController:
    """One for each pool. Flips one worker at a time, and not again before `rest_us` are over."""

    def __init__(self, rules: RoleRules | None = None) -> None:
        self.rules = rules or RoleRules()
        self._flipped_us = -np.inf
        self._seen_us: float | None = None
        self._queued_us = 0.0

    def round(self, now_us: float, loads: WorkerLoads, among: Slots) -> Roles:
        """`among`: those that serve and stay."""
        rules = self.rules
        prefills = loads.of(ROLE, among) == PREFILL
        count = int(prefills.sum())
        tightest_us = min(float(loads.of(TIGHTEST, among).min(initial=np.inf)), LONGEST_US)
        weight = self._weight(now_us)
        now_queued_us = float((loads.of(QUEUED_US, among) / loads.of(SHARE, among)).sum()) / max(len(among), 1)
        self._queued_us += weight * (now_queued_us - self._queued_us)
        queued_us = self._queued_us
        numbers = {"prefill": float(count), "queued_us": queued_us, "tightest_tpot_us": tightest_us}
        if now_us - self._flipped_us < rules.rest_us or len(among) < 2:
            return Roles({}, "rests", numbers)
        if count and queued_us < rules.queued_less * tightest_us:
            return self._flip(now_us, among, prefills, MIXED, "nothing_waits", numbers, self._gains(loads, among))
        held, kv = self._held(loads, among, ~prefills, tightest_us)
        numbers |= {"held_share": held, "kv_share": kv}
        if count and (held > rules.held_share + rules.held_more or kv > rules.kv_share + rules.held_more):
            return self._flip(now_us, among, prefills, MIXED, "decodes_need_it", numbers, self._gains(loads, among))
        if queued_us < rules.queued_us * tightest_us or count + 1 >= len(among):
            return Roles({}, "as_it_is", numbers)
        gains = self._gains(loads, among) * (1 / tightest_us - 1 / LONGEST_US)
        gains[prefills] = -np.inf
        at = int(gains.argmax())
        held, kv = self._held(loads, among, ~prefills & (np.arange(len(among)) != at), tightest_us)
        numbers |= {"gain": float(gains[at]), "held_share_after": held, "kv_share_after": kv}
        if gains[at] < rules.least_gain or held > rules.held_share or kv > rules.kv_share:
            return Roles({}, "as_it_is", numbers)
        return self._flip(now_us, among, prefills, PREFILL, "prefill_waits", numbers, gains)

    def _weight(self, now_us: float) -> float:
        """Of what is seen now, beside what was seen before."""
        passed_us = np.inf if self._seen_us is None else now_us - self._seen_us
        self._seen_us = now_us
        return float(1 - np.exp(-passed_us / self.rules.memory_us))

    def _flip(
        self,
        now_us: float,
        among: Slots,
        prefills: np.ndarray,
        role: int,
        reason: str,
        numbers: Mapping[str, float],
        gains: Floats,
    ) -> Roles:
        """To PREFILL the one that gains most by it, to MIXED the one that gains least."""
        self._flipped_us = now_us
        able = prefills == (role == MIXED)
        at = np.where(able, gains, np.inf).argmin() if role == MIXED else np.where(able, gains, -np.inf).argmax()
        return Roles({int(among[at]): role}, reason, numbers)

    @staticmethod
    def _gains(loads: WorkerLoads, among: Slots) -> Floats:
        """[len(among)] What each step costs there beside its tokens, microseconds."""
        found: Floats = loads.of(PACE, among) * loads.of(BASE, among)
        return found

    @staticmethod
    def _held(loads: WorkerLoads, among: Slots, holds: np.ndarray, tightest_us: float) -> tuple[float, float]:
        """Held share and KV share of the workers that `hold`, with all decodes there, in equal parts."""
        workers = max(int(holds.sum()), 1)
        share = StepShare(loads.view(among))
        held_us = share.held_us(share.decodes.sum() / workers, share.context.sum() / workers)
        held = float(held_us[holds].max(initial=0.0)) / tightest_us
        kv = float(loads.of(KV_USED, among).sum()) / max(float(loads.of(KV_TOKENS, among)[holds].sum()), 1.0)
        return held, kv
