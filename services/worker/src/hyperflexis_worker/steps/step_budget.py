"""How long the next step may take: what the decodes can spare, and no longer than does anybody good."""

from __future__ import annotations

import math

import numpy as np

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_worker.steps.prefill_queue import Floats, PrefillQueue
from hyperflexis_worker.steps.slo_rules import SloRules
from hyperflexis_worker.steps.step_policy import Decodes


class StepBudget:
    """Of one step that begins at `now_us`. Times in microseconds, as they really are: `pace` (actual over predicted
    step time) is in them."""

    def __init__(self, rules: SloRules, model: StepTimeModel, pace: float, now_us: float, decodes: Decodes) -> None:
        self._rules = rules
        self._model = model
        self._pace = pace
        self.now_us = now_us
        self.decodes = decodes
        self.fixed_us = pace * model.decodes_us(decodes.count, decodes.context_tokens)
        """What the step takes with no prefill in it."""

    def within_us(self, queue: PrefillQueue, key: Floats) -> float:
        """`key`: [len(queue)], or empty where nobody is to be prefilled; whose is the smallest comes first."""
        rules = self._rules
        if not self.decodes.count:
            return rules.longest_us
        due_us, tightest_us = self.tightest()
        pause_us = self.trusted_us(float(self.decodes.pause_end_us.min()))
        within_us = min(self.trusted_us(due_us), pause_us, rules.longest_us)
        if tightest_us == math.inf:
            return within_us
        usual_us = rules.longest_share * tightest_us
        if within_us > usual_us and not self._hurried(usual_us, queue, key):
            within_us = usual_us
        unhurried_us = max(rules.unhurried_us, 2 * self.fixed_us)
        if within_us > unhurried_us and self._ample(unhurried_us, queue):
            within_us = unhurried_us
        return max(within_us, min(rules.floor_share * tightest_us, rules.longest_us))

    def tightest(self) -> tuple[float, float]:
        """When the first of the decodes' next tokens is due, and the tightest TPOT; infinite where all are lost."""
        due_us, tpot_us = self.decodes.due_us, self.decodes.tpot_us
        first_us = float(due_us.min())
        if self._rules.reachable and first_us <= self.now_us:
            kept = (tpot_us > self.fixed_us) | (due_us > self.now_us)
            if not kept.any():
                return math.inf, math.inf
            return float(due_us[kept].min()), float(tpot_us[kept].min())
        return first_us, float(tpot_us.min())

    def trusted_us(self, until_us: float) -> float:
        """Of the time until something must have happened."""
        margin_us = min(self._rules.margin_us, 0.1 * float(self.decodes.tpot_us.min()))
        return (until_us - self.now_us) * self._rules.slack_share - margin_us

    def _hurried(self, step_us: float, queue: PrefillQueue, key: Floats) -> bool:
        """Whether the next in order would be late by steps of this length, all of them its own."""
        if not len(key):
            return False
        at = int(key.argmin())
        if key[at] == np.inf:
            return False
        alone_us = self._pace * self._model.prefill_us(float(queue.to_compute[at]), float(queue.computed[at]))
        free_us = step_us - self.fixed_us
        left_us = float(queue.due_us[at]) - self.now_us
        return left_us > alone_us and alone_us * step_us > max(free_us, 0.1 * step_us) * left_us

    def _ample(self, step_us: float, queue: PrefillQueue) -> bool:
        """Whether steps of this length leave all who wait, in order of deadline, much more prefill than they need."""
        if not len(queue):
            return True
        prefill_share = 1 - self.fixed_us / step_us
        needed_us = self._pace * queue.prefill_us(self._model).cumsum()
        return bool((self._rules.ample * needed_us <= prefill_share * (queue.due_us - self.now_us)).all())
