"""First token and step time on each worker, predicted from its loads and step-time model: what the SLO-aware baseline
dispatchers have fitted or tabled predictors for. Ours makes no error but the loads' age, so it is in their favour."""

from __future__ import annotations

import numpy as np

from hyperflexis_common.step_time import PLATEAU_TOKENS
from hyperflexis_scheduler.core.loads import (
    C0,
    C1,
    C2,
    C4,
    C5,
    CONTEXT,
    QUEUED_TOKENS,
    QUEUED_US,
    RUNNING,
    Floats,
    Slots,
    WorkerLoads,
)


class Forecast:
    """Of workers that prefill in chunks, with all decodes and `step_tokens` tokens a step; all [len(among)]."""

    def __init__(self, loads: WorkerLoads, among: Slots, step_tokens: int) -> None:
        self._loads = loads
        self._among = among
        self._step_tokens = step_tokens

    def step_us(self, decodes: Floats, context: Floats, prefill: Floats | float = 0.0) -> Floats:
        """A step of so many decodes that attend to `context` tokens together, and so many prefill tokens."""
        c0, c1, c2, c4, c5 = (self._loads.of(field, self._among) for field in (C0, C1, C2, C4, C5))
        tokens = decodes + prefill
        linear = c1 * np.minimum(tokens, PLATEAU_TOKENS) + c2 * np.maximum(tokens - PLATEAU_TOKENS, 0.0)
        return c0 + linear + c4 * context + c5 * decodes

    def ttft_us(self, age_us: float, own_tokens: float) -> Floats:
        """The queue ahead and its own prompt, in steps that carry the decodes along."""
        loads, among = self._loads, self._among
        decodes = loads.of(RUNNING, among)
        chunk = np.maximum(self._step_tokens - decodes, 1.0)
        steps = np.ceil((loads.of(QUEUED_TOKENS, among) + own_tokens) / chunk)
        work_us = loads.of(QUEUED_US, among) + loads.prefill_us(own_tokens, among)
        return age_us + work_us + steps * self.step_us(decodes, loads.of(CONTEXT, among))

    def tpot_us(self, own_tokens: float) -> Floats:
        """A step with one request more, beside a chunk of what is queued now."""
        loads, among = self._loads, self._among
        decodes = loads.of(RUNNING, among)
        chunk = np.minimum(loads.of(QUEUED_TOKENS, among), np.maximum(self._step_tokens - decodes, 0.0))
        return self.step_us(decodes + 1, loads.of(CONTEXT, among) + own_tokens, chunk)
