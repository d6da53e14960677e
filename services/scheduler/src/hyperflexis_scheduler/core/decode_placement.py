"""Which worker takes a decode: the one where it does least harm among those that can keep every promise with it.

Pure: no clock, no sessions. A target must be allowed to decode, have KV room for the context and what is still to come,
a move to spare, and steps that stay within the tightest TPOT there and the request's own. Harm is how much longer work
gets to take there (StepShare.harm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hyperflexis_scheduler.core.links import Links
from hyperflexis_scheduler.core.loads import (
    ARRIVING_TOKENS,
    C0,
    KV_TOKENS,
    KV_USED,
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
from hyperflexis_scheduler.core.step_share import StepShare

BYTES_PER_GB = 1e9
Flags = npt.NDArray[np.bool_]


class Decode(NamedTuple):
    """One that is to decode somewhere, or does."""

    context_tokens: float
    growth_tokens: float
    """Output tokens that are still to come, as far as one can tell."""
    tpot_us: float


class Placed(NamedTuple):
    slot: int | None
    """None = it stays where it is."""
    reason: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class PlacementRules:
    tpot_share: float = 0.9
    """Of the tightest TPOT, what a step of decodes may take on a target: the step policy's own margin is a tenth."""
    kv_share: float = 0.95
    """Of a pool, what may be promised to decodes that come."""
    read_us: float = 100_000.0
    """Longest read: a decode that takes longer to move has changed too much by then."""
    moves: int = 16
    """Under way at one worker at a time, from it and to it."""


def at_once(prefill_us: Floats, tpot_us: float, loads: WorkerLoads, among: Slots) -> Slots:
    """Those of the slots, of workers that decode, where a prompt that takes so long there [len(among)] would be done in
    a step that the decodes there allow: it need not be handed off."""
    share = loads.of(SHARE, among)
    step_us = np.minimum(loads.of(TIGHTEST, among), tpot_us)
    found: Slots = among[(loads.of(QUEUED_US, among) + prefill_us) / share <= step_us]
    return found


class DecodePlacement:
    def __init__(self, rules: PlacementRules | None = None, bytes_per_token: float = 131_072.0) -> None:
        self.rules = rules or PlacementRules()
        self.bytes_per_token = bytes_per_token

    def choose(self, decode: Decode, source: int, loads: WorkerLoads, among: Slots, links: Links) -> Placed:
        """One of `among`, without the source, or None. For decodes that `source` is to be rid of, because of its role
        or because it leaves; until one is found they go on where they are."""
        rules = self.rules
        targets = among[(among != source) & (loads.of(ROLE, among) != PREFILL)]
        if not len(targets):
            return Placed(None, "no_decode_worker", {"candidates": 0.0})
        gb = self.bytes_per_token * decode.context_tokens / BYTES_PER_GB
        fits = self._room(decode, loads, targets)
        read_us = links.read_us(source, targets, gb)
        links_free = (read_us <= rules.read_us) & (links.moving(targets) < rules.moves)
        links_free &= links.moves(source) < rules.moves
        share = StepShare(loads.view(targets))
        # What the source does not keep either is late anywhere, and no reason to stay.
        kept = decode.tpot_us > loads.get(source, PACE) * loads.get(source, C0)
        asked_us = decode.tpot_us if kept else share.asked_us(decode.tpot_us)
        tightest_us = np.minimum(loads.of(TIGHTEST, targets), asked_us)
        step_us = share.step_us(1, decode.context_tokens + decode.growth_tokens / 2)
        in_time = step_us <= rules.tpot_share * tightest_us
        able = fits & links_free & in_time
        numbers = {"candidates": float(len(targets)), "fit": float(fits.sum()), "in_time": float(in_time.sum())}
        if not able.any():
            return Placed(None, self._lacking(fits, in_time), numbers)
        harm = share.harm(decode.context_tokens, decode.tpot_us)
        at = int(np.where(able, harm, np.inf).argmin())
        numbers |= {
            "harm": float(harm[at]),
            "predicted_step_us": float(step_us[at]),
            "tightest_tpot_us": float(tightest_us[at]),
            "read_us": float(read_us[at]),
        }
        return Placed(int(targets[at]), "least_harm", numbers)

    @staticmethod
    def _lacking(fits: Flags, in_time: Flags) -> str:
        if not fits.any():
            return "no_kv_room"
        if not in_time.any():
            return "no_tpot_budget"
        return "links_busy" if (fits & in_time).any() else "no_worker_with_both"

    def _room(self, decode: Decode, loads: WorkerLoads, targets: Slots) -> Flags:
        used = loads.of(KV_USED, targets) + loads.of(ARRIVING_TOKENS, targets)
        need = used + decode.context_tokens + decode.growth_tokens
        found: Flags = need <= self.rules.kv_share * loads.of(KV_TOKENS, targets)
        return found
