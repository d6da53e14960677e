"""How long the next step may take: what the decodes can spare, and no longer than does anybody good."""

from __future__ import annotations

import math

import numpy as np

from hyperflexis_common.step_time import StepShape, StepTimeModel
from hyperflexis_worker.core.prefill_queue import Floats, PrefillQueue
from hyperflexis_worker.core.slo_rules import SloRules
from hyperflexis_worker.core.step_policy import Decodes


class StepBudget:
    """Times in microseconds. `pace`: actual over predicted step time; budgets are of actual time."""

    def __init__(self, model: StepTimeModel, rules: SloRules) -> None:
        self._model = model
        self._rules = rules

    def within_us(self, now_us: float, pace: float, decodes: Decodes, queue: PrefillQueue, key: Floats) -> float:
        """`key`: [len(queue)], or empty where nobody is to be prefilled; whose is the smallest comes first."""
        rules = self._rules
        if not decodes.count:
            return rules.longest_us
        due_us, tightest_us = self.tightest(now_us, pace, decodes)
        pause_us = self.trusted_us(float(decodes.pause_end_us.min()) - now_us, decodes)
        within_us = min(self.trusted_us(due_us - now_us, decodes), pause_us, rules.longest_us)
        if tightest_us == math.inf:
            return within_us
        usual_us = rules.longest_share * tightest_us
        if within_us > usual_us and not self._hurried(now_us, pace, usual_us, decodes, queue, key):
            within_us = usual_us
        unhurried_us = max(rules.unhurried_us, 2 * pace * self.fixed_us(decodes))
        if within_us > unhurried_us and self._ample(now_us, pace, unhurried_us, decodes, queue):
            within_us = unhurried_us
        return max(within_us, rules.floor_share * tightest_us)

    def fixed_us(self, decodes: Decodes) -> float:
        """What a step with these decodes takes, by the model, beyond its prefill chunks."""
        if not decodes.count:
            return self._model.c0_us + self._model.host_us
        return self._model.predict_us(StepShape((), decodes.count, int(decodes.context_tokens)))

    def tightest(self, now_us: float, pace: float, decodes: Decodes) -> tuple[float, float]:
        """When the first of their next tokens is due, and the tightest TPOT; infinite where all of them are lost."""
        due_us, tpot_us = decodes.due_us, decodes.tpot_us
        if self._rules.reachable and due_us.min() <= now_us:
            kept = (tpot_us > pace * self.fixed_us(decodes)) | (due_us > now_us)
            if not kept.any():
                return math.inf, math.inf
            due_us, tpot_us = due_us[kept], tpot_us[kept]
        return float(due_us.min()), float(tpot_us.min())

    def trusted_us(self, left_us: float, decodes: Decodes) -> float:
        """Of the time until something must have happened."""
        margin_us = min(self._rules.margin_us, 0.1 * float(decodes.tpot_us.min()))
        return left_us * self._rules.slack_share - margin_us

    def _hurried(
        self, now_us: float, pace: float, step_us: float, decodes: Decodes, queue: PrefillQueue, key: Floats
    ) -> bool:
        """Whether the next in order would be late by steps of this length, all of them its own."""
        if not len(key) or not np.isfinite(key.min()):
            return False
        at = int(key.argmin())
        alone_us = pace * self._model.prefill_us(float(queue.to_compute[at]), float(queue.computed[at]))
        free_us = step_us - pace * self.fixed_us(decodes)
        left_us = float(queue.due_us[at]) - now_us
        return left_us > alone_us and alone_us * step_us > max(free_us, 0.1 * step_us) * left_us

    def _ample(self, now_us: float, pace: float, step_us: float, decodes: Decodes, queue: PrefillQueue) -> bool:
        """Whether steps of this length leave all who wait, in order of deadline, much more prefill than they need."""
        prefill_share = 1 - pace * self.fixed_us(decodes) / step_us
        needed_us = pace * queue.prefill_us(self._model).cumsum()
        return bool((self._rules.ample * needed_us <= prefill_share * (queue.due_us - now_us)).all())
