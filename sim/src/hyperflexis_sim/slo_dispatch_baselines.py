"""Dispatch policies that bin or filter by SLO, as baselines: PolyServe and Llumnix. Both are reconstructed: neither the
one's code nor a per-request SLO in the other's was at hand. What is ours is said at each rule."""

from __future__ import annotations

import numpy as np

from hyperflexis_scheduler.core.dispatch_policy import Ask, Choice
from hyperflexis_scheduler.core.loads import (
    CONTEXT,
    KV_TOKENS,
    KV_USED,
    QUEUED_TOKENS,
    REQUESTS,
    Floats,
    Slots,
    WorkerLoads,
)
from hyperflexis_sim.forecast import Forecast

FILTER_SHARE = 0.85
"""Of its SLO, what a request's predicted latency must stay below (Llumnix' default)."""


class PolyServe:
    """Workers in bins by TPOT; the most loaded that still admits a request gets it, so that others stay free.

    From the paper's design: bins, the most loaded first, looser requests may borrow tighter workers, and admission by
    three predictions: the first token within TTFT, the second within TTFT + TPOT, and the step within TPOT with the KV
    that the batch will grow to by the mean output length, a prefill chunk included as prefill and decode share workers.

    Reconstructed: a worker is of the bin of the tightest TPOT sent to it since it was last idle, and of none while idle
    (the paper's autoscaled pool, for a fleet of fixed size); own bin first, then an idle worker, then tighter bins from
    the nearest on, then looser ones, whose bin that tightens. Load is the predicted step time. Where none admits, the
    earliest first token is all that is left: the paper would add a worker. Growth of the batch is half of the mean
    output length for each one there, the whole for the new one.
    """

    def __init__(self, step_tokens: int) -> None:
        self._step_tokens = step_tokens
        self._bins: dict[int, float] = {}
        """TPOT of each slot that is not idle."""

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        requests = loads.of(REQUESTS, among)
        bins = self._tpots(among, requests)
        forecast = Forecast(loads, among, self._step_tokens)
        ttft_us = forecast.ttft_us(ask.age_us, ask.prefill_tokens)
        growth = ask.expected_tokens * (1 + requests / 2)
        context = loads.of(CONTEXT, among) + loads.of(QUEUED_TOKENS, among) + ask.prefill_tokens + growth
        chunk = np.maximum(self._step_tokens - requests - 1, 0.0)
        step_us = forecast.step_us(requests + 1, context, chunk)
        admits = (ttft_us <= ask.ttft_us) & (ttft_us + step_us <= ask.ttft_us + ask.tpot_us) & (step_us <= ask.tpot_us)
        if admits.any():
            # 0 own bin, 1 idle, above 1 tighter, the nearer the less, above 2 looser.
            distance = np.where(bins < ask.tpot_us, 2 - bins / ask.tpot_us, 3 - ask.tpot_us / bins)
            distance = np.where(bins == ask.tpot_us, 0.0, np.where(requests == 0, 1.0, distance))
            distance = np.where(admits, distance, np.inf)
            nearest = np.flatnonzero(distance == distance.min())
            at = int(nearest[step_us[nearest].argmax()])
            reason = "most_loaded_that_admits"
        else:
            at = int(ttft_us.argmin())
            reason = "none_admits"
        slot = int(among[at])
        self._bins[slot] = min(self._bins.get(slot, np.inf), ask.tpot_us)
        numbers = {"predicted_ttft_us": float(ttft_us[at]), "predicted_step_us": float(step_us[at])}
        return Choice(slot, reason, {**numbers, "admit": float(admits.sum())})

    def _tpots(self, among: Slots, requests: Floats) -> Floats:
        """[len(among)] The bins' TPOT; infinite for idle workers."""
        for slot in among[requests == 0].tolist():
            self._bins.pop(slot, None)
        return np.array([self._bins.get(slot, np.inf) for slot in among.tolist()])


class LlumnixSlo:
    """The freest worker among those predicted to be in time.

    From its first version (OSDI'24): freeness, the KV room that is not virtually used, prompts in the queue counted as
    used, over the requests there: about how many steps they can go on. From its second: keep the workers whose
    predicted TTFT and TPOT stay below 0.85 of the SLO. Reconstructed: that SLO is the request's own class, where
    Llumnix has one for all; the predictor is our step-time model, for its offline tables; where nobody passes, all
    are candidates. Its migration is left out.
    """

    def __init__(self, step_tokens: int) -> None:
        self._step_tokens = step_tokens

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        forecast = Forecast(loads, among, self._step_tokens)
        ttft_us = forecast.ttft_us(ask.age_us, ask.prefill_tokens)
        tpot_us = forecast.tpot_us(ask.prefill_tokens)
        passes = (ttft_us <= FILTER_SHARE * ask.ttft_us) & (tpot_us <= FILTER_SHARE * ask.tpot_us)
        virtual = loads.of(KV_USED, among) + loads.of(QUEUED_TOKENS, among)
        freeness = (loads.of(KV_TOKENS, among) - virtual) / np.maximum(loads.of(REQUESTS, among), 1.0)
        candidates = freeness if not passes.any() else np.where(passes, freeness, -np.inf)
        at = int(candidates.argmax())
        numbers = {"freeness": float(freeness[at]), "predicted_ttft_us": float(ttft_us[at])}
        return Choice(int(among[at]), "freest", {**numbers, "pass": float(passes.sum())})
