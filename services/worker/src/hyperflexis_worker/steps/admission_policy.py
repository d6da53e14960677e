"""Our rules for an engine that fills its steps itself: all that can be decided is who is handed to it, and when.

Such an engine (TensorRT-LLM's own scheduler, vLLM's) runs all decodes and, first come first served, up to `max_tokens`
of the prompts that it has. Once it has a prompt, decodes wait for all of it. So a prompt is held back until the
decodes can afford the whole of it; what is given up, and whose turn it is, is decided as by SloPolicy.
"""

from __future__ import annotations

import math

import numpy as np

from hyperflexis_worker.steps.prefill_queue import Floats, PrefillQueue, Waiting
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.step_budget import StepBudget
from hyperflexis_worker.steps.step_policy import Chosen, Decodes, Room, StepChoice


class AdmissionPolicy(SloPolicy):
    """`max_tokens`: of a step, as the engine is configured. The engine never has more prompts than fill a step: those
    held back can still be given up, moved, or overtaken."""

    _credit_us = 0.0
    """Slack that decodes would have if every step were due after SloRules.floor_share of the tightest TPOT and nobody
    had been late before: a late decode must not freeze prefill."""

    def stepped(
        self, choice: StepChoice, decodes: Decodes, waiting_left: bool, predicted_us: float, took_us: float
    ) -> None:
        super().stepped(choice, decodes, waiting_left, predicted_us, took_us)
        earned_us = self._floor_us(decodes) - took_us if waiting_left and decodes.count else 0.0
        self._credit_us = max(self._credit_us + earned_us, 0.0) if waiting_left else 0.0

    def _floor_us(self, decodes: Decodes) -> float:
        return self.rules.floor_share * float(decodes.tpot_us.min())

    def _limit_us(self, budget: StepBudget, queue: PrefillQueue, key: Floats) -> float:
        return 0.0

    def _fill(self, budget: StepBudget, key: Floats, queue: PrefillQueue, room: Room, choice: StepChoice) -> None:
        tokens, sequences = budget.decodes.count, budget.decodes.count
        begun = np.flatnonzero((queue.computed > 0) & np.isfinite(key))
        waiting_us = 0.0
        """Of prefill that the engine has to do before anything else that it is handed."""
        for at in begun[np.argsort(queue.arrival_us[begun])].tolist():
            key[at] = np.inf
            sequences += 1
            request = queue.requests[at]
            waiting_us += self.model.prefill_us(request.to_compute, request.computed)
            if tokens < self._max_tokens:
                tokens += self._take(request, room, tokens, choice)
        while tokens < self._max_tokens and sequences < self._max_sequences:
            at = int(key.argmin())
            if key[at] == np.inf:
                return
            key[at] = np.inf
            request = queue.requests[at]
            if not self._affordable(request, waiting_us, budget, choice):
                return
            taken = self._take(request, room, tokens, choice)
            if not taken:
                self._short_of = float(room.kv_tokens)
                return  # no room: nobody overtakes it
            tokens, sequences = tokens + taken, sequences + 1
            waiting_us += self.model.prefill_us(request.to_compute, request.computed)

    def _take(self, request: Waiting, room: Room, tokens: int, choice: StepChoice) -> int:
        offer = room.offer(request)
        if offer is None:
            return 0
        room.take(request)
        chunk = min(offer.tokens, self._max_tokens - tokens)
        choice.chunks.append(Chosen(request, chunk))
        return chunk

    def _affordable(self, request: Waiting, waiting_us: float, budget: StepBudget, choice: StepChoice) -> bool:
        """Whether the decodes keep their promises though the engine does all of this, and what it has, in its steps."""
        decodes = budget.decodes
        if not decodes.count:
            return True
        prefill_us = waiting_us + self.model.prefill_us(request.to_compute, request.computed)
        to_compute = request.to_compute + sum(chosen.request.to_compute for chosen in choice.chunks)
        steps = math.ceil(to_compute / max(self._max_tokens - decodes.count, 1))
        took_us = self._pace * prefill_us + steps * budget.fixed_us
        due_us, tpot_us = budget.tightest()
        kept = due_us == math.inf or took_us <= budget.trusted_us(due_us) + (steps - 1) * tpot_us
        in_time = kept and took_us / steps <= float(decodes.pause_end_us.min()) - budget.now_us
        return in_time or took_us <= self._credit_us + steps * self._floor_us(decodes)
