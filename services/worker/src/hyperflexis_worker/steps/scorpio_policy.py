"""SCORPIO's engine scheduler, as a baseline: reject, order, admit and batch by each request's own TTFT and TPOT.

After the paper's code (MisterBrookT/Scorpio, MIT; its policy string `ldf_rej_gate1.3_credit`). Each step: refuse who
cannot meet its TTFT behind those that came before it; serve the least deadline first; let in only what keeps the mean
step within the tightest TPOT, where a loose request counts as part of one (the virtual batch size); and let loose
decodes sit steps out, by credit.

What differs from that code, each in its favour or to have no dead end: its fitted step times are our step-time model;
prompts that have begun are served in each step, credit or not; with nobody running, the first in line is let in.
"""

from __future__ import annotations

import numpy as np

from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import PLATEAU_TOKENS, StepTimeModel
from hyperflexis_worker.steps.prefill_queue import Floats, PrefillQueue, Waiting
from hyperflexis_worker.steps.step_policy import Chosen, Decodes, GivenUp, Room, StepChoice

REJECTION_MARGIN_US = 50_000.0
"""Added to the predicted wait before it is held against a request's TTFT."""
GATE = 1.3
"""A predicted step counts as so many times longer ..."""
TPOT_SHARE = 0.99
"""... and must stay below this share of the tightest TPOT."""
LOOSEST_TPOT_US = 1_000_000.0
"""No TPOT counts as looser than this: with an infinite one a request would never earn a token's credit."""


class ScorpioPolicy:
    """`oracle`: output lengths are looked up in the requests that tell theirs, as simulated ones do; else the mean of
    the tier stands for the paper's predictor."""

    def __init__(
        self,
        model: StepTimeModel,
        max_tokens: int,
        max_sequences: int,
        lengths: OutputLengths | None = None,
        *,
        oracle: bool = False,
    ) -> None:
        if max_tokens < 1 or max_sequences < 1:
            raise ValueError("max_tokens and max_sequences must be at least 1")
        self.model = model
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences
        self._lengths = lengths or OutputLengths()
        self._oracle = oracle

    def choose(self, now_us: float, decodes: Decodes, queue: PrefillQueue, room: Room) -> StepChoice:
        choice = StepChoice()
        waiting = queue.computed == 0
        rejected = self._reject(now_us, queue, waiting, choice)
        decode_tpot_us = _counted(decodes.tpot_us)
        begun_tpot_us = _counted(queue.tpot_us[~waiting])
        tightest_us = min((float(tpot.min()) for tpot in (decode_tpot_us, begun_tpot_us) if len(tpot)), default=np.inf)
        if decodes.count:
            choice.decode = _with_credit(decode_tpot_us, decodes.credit, tightest_us)
            choice.repeats = not (decode_tpot_us != tightest_us).any()
        if len(queue):
            rates = float((1 / decode_tpot_us).sum() + (1 / begun_tpot_us).sum())
            batch = _Batch(tightest_us, rates, decodes.count + len(begun_tpot_us), decodes.context_tokens)
            batch.context += float((queue.to_compute + queue.computed)[~waiting].sum())
            self._fill(decodes, queue, waiting & ~rejected, room, batch, choice)
        if choice.decode is not None and not choice.chunks and not choice.decode.any():
            choice.decode = None  # the tightest is a prompt that finds no room: no step is empty
        return choice

    def stepped(
        self, choice: StepChoice, decodes: Decodes, waiting_left: bool, predicted_us: float, took_us: float
    ) -> None:
        """Learns nothing."""

    def learn_output(self, tier: str, tokens: int) -> None:
        self._lengths.learn(tier, tokens)

    def turns_us(self, queue: PrefillQueue) -> None:
        """Serves in another order."""

    def _reject(self, now_us: float, queue: PrefillQueue, waiting: np.ndarray, choice: StepChoice) -> np.ndarray:
        """[len(queue)] Who is refused: in order of arrival, whatever they will be served in, as in the original."""
        rejected = np.zeros(len(queue), dtype=bool)
        places = np.flatnonzero(waiting)
        if not len(places):
            return rejected
        places = places[np.argsort(queue.arrival_us[places], kind="stable")]
        tokens = queue.to_compute[places]
        left_us = queue.due_us[places] - now_us - REJECTION_MARGIN_US
        if not (left_us < self._wait_us(tokens, np.cumsum(tokens))).any():
            return rejected
        pairs_us = 0.5 * self.model.c3_us * tokens * tokens
        ahead, ahead_us = 0.0, 0.0
        rows = zip(places.tolist(), tokens.tolist(), pairs_us.tolist(), left_us.tolist(), strict=True)
        for at, own, own_us, room_us in rows:
            wait_us = ahead_us + own_us + self._linear_us(ahead + own)
            request = queue.requests[at]
            if room_us < wait_us and not request.made:
                rejected[at] = True
                choice.given_up.append(_given_up(request, now_us, wait_us, ahead))
            else:
                ahead, ahead_us = ahead + own, ahead_us + own_us
        return rejected

    def _wait_us(self, tokens: Floats, ahead: Floats) -> Floats:
        """[len(tokens)] Prefill of everything up to each; `ahead` its tokens, those of each itself included."""
        model = self.model
        linear = model.c1_us * np.minimum(ahead, PLATEAU_TOKENS) + model.c2_us * np.maximum(ahead - PLATEAU_TOKENS, 0)
        return model.c0_us + model.host_us + linear + 0.5 * model.c3_us * np.cumsum(tokens * tokens)

    def _linear_us(self, tokens: float) -> float:
        model = self.model
        beyond = max(tokens - PLATEAU_TOKENS, 0.0)
        return model.c0_us + model.host_us + model.c1_us * (tokens - beyond) + model.c2_us * beyond

    def _fill(
        self, decodes: Decodes, queue: PrefillQueue, waiting: np.ndarray, room: Room, batch: _Batch, choice: StepChoice
    ) -> None:
        """Those begun, then those let in, both by deadline, as the queue is."""
        budget = self._max_tokens - (decodes.count if choice.decode is None else int(choice.decode.sum()))
        for at in np.flatnonzero(queue.computed > 0).tolist():
            if budget < 1:
                return
            request = queue.requests[at]
            offer = room.offer(request)
            if offer is not None:
                chunk = min(offer.tokens, budget)
                room.take(request)
                choice.chunks.append(Chosen(request, chunk))
                budget -= chunk
        for at in np.flatnonzero(waiting).tolist():
            request = queue.requests[at]
            if budget < 1 or batch.requests >= self._max_sequences or not self._lets_in(batch, request):
                return
            offer = room.offer(request)
            if offer is None:
                return
            chunk = min(offer.tokens, budget)
            room.take(request)
            choice.chunks.append(Chosen(request, chunk))
            budget -= chunk
            batch.add(request)

    def _lets_in(self, batch: _Batch, request: Waiting) -> bool:
        """Whether the mean step over its life, for the virtual batch that it would make, is short enough."""
        if not batch.requests:
            return True
        tightest_us = min(batch.tightest_us, _counted_one(request.tpot_us))
        virtual = tightest_us * (batch.rates + 1 / _counted_one(request.tpot_us))
        mean_tokens = (batch.context + _length(request)) / (batch.requests + 1)
        model = self.model
        step_us = 0.5 * model.c4_us * virtual * (2 * mean_tokens + self._output(request))
        step_us += model.c5_us * virtual + self._linear_us(virtual)
        return step_us * GATE < TPOT_SHARE * tightest_us

    def _output(self, request: Waiting) -> float:
        if self._oracle:
            known = getattr(request, "output_tokens", None)
            if known is not None:
                return float(known - request.made)
        return self._lengths.remaining(request.tier, request.made, request.max_tokens)


class _Batch:
    """Who runs, as admission counts them; those let in in this step included."""

    def __init__(self, tightest_us: float, rates: float, requests: int, context: float) -> None:
        self.tightest_us = tightest_us
        self.rates = rates
        """Sum of 1/TPOT: times the tightest TPOT, the virtual batch size."""
        self.requests = requests
        self.context = context
        """Tokens of all of them."""

    def add(self, request: Waiting) -> None:
        tpot_us = _counted_one(request.tpot_us)
        self.tightest_us = min(self.tightest_us, tpot_us)
        self.rates += 1 / tpot_us
        self.requests += 1
        self.context += _length(request)


def _with_credit(tpot_us: Floats, credit: Floats, tightest_us: float) -> np.ndarray | None:
    """[n] Who decodes: the tightest always, others when they have saved up for a step. None = everybody."""
    loose = tpot_us != tightest_us
    if not loose.any():
        return None
    credit += np.where(loose, tightest_us / tpot_us, 0.0)
    paid = loose & (credit >= 1)
    credit -= paid
    runs = paid | ~loose
    return None if runs.all() else runs


def _given_up(request: Waiting, now_us: float, wait_us: float, ahead: float) -> GivenUp:
    first_us = now_us + wait_us
    numbers = {
        "predicted_ttft_us": first_us - request.arrival_us,
        "late_us": first_us + REJECTION_MARGIN_US - request.due_us,
        "tokens_ahead": ahead,
    }
    return GivenUp(request, "unattainable", numbers)


def _length(request: Waiting) -> int:
    return request.computed + request.to_compute


def _counted(tpot_us: Floats) -> Floats:
    return np.clip(tpot_us, 1.0, LOOSEST_TPOT_US)


def _counted_one(tpot_us: float) -> float:
    return min(max(tpot_us, 1.0), LOOSEST_TPOT_US)
