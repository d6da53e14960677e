"""How much of a worker's time its decodes take: what placing, moving and flipping are decided on.

A worker that serves a decode of TPOT T cannot make steps much longer than T, and each of them costs something whatever
is in it, and something for every decode. That part of T is not there for prefill: the *held share*. A tight decode
among loose ones makes all of them pay for shorter steps; among tight ones it costs little. One number says both.
"""

from __future__ import annotations

import numpy as np

from hyperflexis_common.step_time import PLATEAU_TOKENS
from hyperflexis_scheduler.core.loads import (
    ARRIVING,
    ARRIVING_TOKENS,
    BASE,
    C0,
    C1,
    C2,
    C4,
    C5,
    CONTEXT,
    EACH,
    PACE,
    RUNNING,
    TIGHTEST,
    Floats,
    LoadView,
)

LONGEST_US = 150_000.0
"""Steps without decodes are no longer than this (the step policy's own limit)."""
FULL = 0.98
"""Beyond this held share the wait grows on as it does here: one decode more on a worker that is full is no free one."""
_FULL_SLOPE = 1 / (1 - FULL) ** 2


class StepShare:
    """Of some workers, as they are with what is on its way to them; all [n]."""

    def __init__(self, loads: LoadView) -> None:
        self.decodes = loads.of(RUNNING) + loads.of(ARRIVING)
        self.context = loads.of(CONTEXT) + loads.of(ARRIVING_TOKENS)
        self._tightest_us = loads.of(TIGHTEST)
        self._pace = loads.of(PACE)
        self._loads = loads

    def step_us(self, more: float = 0.0, tokens: float = 0.0) -> Floats:
        """A step of the decodes there and so many `more`, which have `tokens` of context together."""
        decodes, context = self.decodes + more, self.context + tokens
        flat = np.minimum(decodes, PLATEAU_TOKENS)
        c0, c1, c2, c4, c5 = (self._loads.of(field) for field in (C0, C1, C2, C4, C5))
        linear = c1 * flat + c2 * (decodes - flat) + c5 * decodes
        found: Floats = self._pace * (c0 + linear + c4 * context)
        return found

    def held_us(self, decodes: Floats | float, context: Floats | float) -> Floats:
        """What a step of so many decodes costs beside its prefill, where prefill fills it."""
        base, each, c4 = (self._loads.of(field) for field in (BASE, EACH, C4))
        found: Floats = self._pace * (base + each * decodes + c4 * context)
        return found

    def asked_us(self, tpot_us: float) -> float:
        """How long steps may be for a decode of that TPOT: what nobody here can keep makes no steps shorter. Where
        somebody can, whoever cannot is the worst place for it."""
        return tpot_us if tpot_us > float((self._pace * self._loads.of(C0)).min(initial=np.inf)) else LONGEST_US

    def harm(self, tokens: float, tpot_us: float) -> Floats:
        """How much longer work gets to take there by one decode more, of so much context and such a TPOT."""
        held_us = self.held_us(self.decodes, self.context)
        more_us = self._pace * (self._loads.of(EACH) + self._loads.of(C4) * tokens)
        tightest_us = np.minimum(self._tightest_us, min(self.asked_us(tpot_us), LONGEST_US))
        found: Floats = _wait((held_us + more_us) / tightest_us)
        found -= _wait(held_us / np.minimum(self._tightest_us, LONGEST_US))
        return found


def _wait(share: Floats) -> Floats:
    """How many times longer work takes where decodes hold that share of the time: 1 / (1 - share). That it is convex
    keeps decodes from heaping up; that it is of the time of a step keeps the tight from the loose."""
    found: Floats
    if share.max(initial=0.0) <= FULL:
        found = 1.0 / (1.0 - share)
    else:
        part = np.minimum(share, FULL)
        found = 1.0 / (1.0 - part) + (share - part) * _FULL_SLOPE
    return found
