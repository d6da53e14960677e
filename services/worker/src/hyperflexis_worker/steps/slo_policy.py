"""The step policy that this project exists for: who is prefilled, how much, and who is given up.

Each step: drop those that cannot be on time any more; of the rest leave behind, largest first, what would make others
late (Moore-Hodgson); order what is kept by deadline and work; then let the decodes' slack say how long the step may
take, and fill it with prefill chunks. docs/scheduling.md argues each rule and shows what it is worth.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_worker.steps.moore_hodgson import left_behind
from hyperflexis_worker.steps.prefill_queue import Floats, PrefillQueue, Rows
from hyperflexis_worker.steps.slo_rules import SloRules
from hyperflexis_worker.steps.step_budget import StepBudget
from hyperflexis_worker.steps.step_policy import Chosen, Decodes, GivenUp, Room, StepChoice
from hyperflexis_worker.steps.worth import Worth


class SloPolicy:
    """See docs/scheduling.md. `max_tokens` and `max_sequences` are the engine's own limits on a step."""

    def __init__(
        self,
        model: StepTimeModel,
        max_tokens: int,
        max_sequences: int,
        lengths: OutputLengths | None = None,
        worth: Worth | None = None,
        rules: SloRules | None = None,
    ) -> None:
        self.model = model
        self.rules = rules or SloRules()
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences
        self._lengths = lengths or OutputLengths()
        self.worth = worth or Worth()
        self._share = 0.75
        """Of the time while prompts wait, what goes into prefill: the rest is decodes and what steps cost anyway."""
        self._pace = 1.0
        """Actual over predicted step time."""
        self._step_us = model.base_us
        """Of steps with decodes in them, the mean."""
        self._short_of: float | None = None
        """Tokens in the pool, where somebody found no room in it in the last step; else None."""

    def choose(self, now_us: float, decodes: Decodes, queue: PrefillQueue, room: Room) -> StepChoice:
        choice = StepChoice()
        key = self._order(now_us, queue, choice) if len(queue) else _NOBODY
        budget = StepBudget(self.rules, self.model, self._pace, now_us, decodes)
        choice.budget_us = self._limit_us(budget, queue, key)
        self._short_of = None
        if len(queue):
            self._fill(budget, key, queue, room, choice)
        return choice

    def stepped(
        self, choice: StepChoice, decodes: Decodes, waiting_left: bool, predicted_us: float, took_us: float
    ) -> None:
        rules = self.rules
        if predicted_us > 0:
            # An outlier (a stall, a garbage collection) is no new pace.
            ratio = min(max(took_us / predicted_us, 0.5 * self._pace), 2 * self._pace)
            self._pace += rules.pace_rate * (ratio - self._pace)
        if decodes.count:
            self._step_us += rules.pace_rate * (min(took_us, 2 * self._step_us) - self._step_us)
        if waiting_left and took_us > 0 and self._short_of is None:
            prefill_us = self._pace * sum(
                self.model.prefill_us(tokens, request.computed) for request, tokens in choice.chunks
            )
            memory = 1 - math.exp(-took_us / rules.share_memory_us)
            self._share += memory * (min(prefill_us / took_us, 1.0) - self._share)
        for request, tokens in choice.chunks:
            self.worth.served(request, self.model.prefill_us(tokens, request.computed))
            if tokens == request.to_compute and not request.made:
                self.worth.settled(request.tier, kept=True)
        for given_up in choice.given_up:
            self.worth.settled(given_up.request.tier, kept=False)

    def learn_output(self, tier: str, tokens: int) -> None:
        self._lengths.learn(tier, tokens)

    @property
    def pace(self) -> float:
        """Actual over predicted step time."""
        return self._pace

    @property
    def prefill_share(self) -> float:
        """Prefill done, by the model's clock, in a second in which prompts wait: what dispatchers divide by. A worker
        that is slower than its model has less of it."""
        return min(self._time_share / self._pace, 1.0)

    @property
    def _time_share(self) -> float:
        return min(max(self._share, self.rules.least_share), 1.0)

    def _limit_us(self, budget: StepBudget, queue: PrefillQueue, key: Floats) -> float:
        return budget.within_us(queue, key) if self.rules.budget else 0.0

    def _order(self, now_us: float, queue: PrefillQueue, choice: StepChoice) -> Floats:
        """[len(queue)] Whom to prefill first, smallest key first; infinite for those given up."""
        rules, pace, model = self.rules, self._pace, self.model
        due_us = queue.due_us
        alone_us, work_us, worth = self._work(queue)
        key = self._turns_us(queue, work_us, worth)
        begun = queue.made > 0
        if rules.give_up:
            first_us = alone_us + now_us + model.base_us * pace
            gone = first_us > due_us
            if gone.any():
                gone &= ~begun
                for at in np.flatnonzero(gone).tolist():
                    self._give_up(choice, queue, at, "hopeless", float(first_us[at]), float(alone_us[at]))
                key[gone] = np.inf
                alone_us = np.where(gone, 0.0, alone_us)
                due_us = np.where(gone, np.inf, due_us)
                begun = begun | gone
        if rules.size_weight:
            behind, first_us = self._behind(now_us, queue, begun, due_us, alone_us, work_us / worth)
            if len(behind):
                self._leave(now_us, queue, behind, first_us, alone_us, key, choice)
        return key

    def _behind(
        self,
        now_us: float,
        queue: PrefillQueue,
        begun: npt.NDArray[np.bool_],
        due_us: Floats,
        alone_us: Floats,
        size: Floats,
    ) -> tuple[Rows, Floats]:
        """[v] Who is left behind, and when each would have its first token if it came after those who are not.

        Each keeps what is short to itself: the GPU until its first token, or, where somebody found no room, a part of
        the pool until its last one, if that is more. The pool must be done with all of that when there is just time
        left for its prefill: those behind may find room all the same, so they are told only once they would be late."""
        time_us = own_us = alone_us / self._time_share
        size, start_us = np.where(begun, -np.inf, size), now_us + self._start_us()
        if self._short_of is None:
            behind = left_behind(due_us, time_us, size, start_us)
        else:
            new = (queue.computed == 0) & (due_us < np.inf)
            pool_us = np.where(new, self._pool_us(queue, alone_us, self._short_of), 0.0)
            due_us = np.where(pool_us > time_us, due_us - own_us, due_us)
            time_us, size = np.maximum(time_us, pool_us), np.where(new, size, -np.inf)
            order = np.argsort(due_us, kind="stable")
            behind = order[left_behind(due_us[order], time_us[order], size[order], start_us)]
        kept_us = float(time_us.sum() - time_us[behind].sum())
        return behind, start_us + kept_us + own_us[behind]

    def _work(self, queue: PrefillQueue) -> tuple[Floats, Floats, Floats]:
        """[len(queue)] Each one's prefill; that and the decodes expected after it, or what it takes of a pool that is
        full, if that is more; what it is worth. Times as they really are, pace and all."""
        pace, model, tokens = self._pace, self.model, queue.to_compute
        alone_us = pace * queue.prefill_us(model)
        decode_tokens = queue.output_left(self._lengths)
        context = tokens + queue.computed + decode_tokens / 2
        work_us = alone_us + decode_tokens * pace * (model.c2_us + model.c5_us + model.c4_us * context)
        if self._short_of is not None:
            work_us = np.maximum(work_us, self._pool_us(queue, alone_us, self._short_of))
        return alone_us, work_us, self.worth.of(queue)

    def _pool_us(self, queue: PrefillQueue, alone_us: Floats, pool_tokens: float) -> Floats:
        """[len(queue)] The part of the pool that each needs, times how long it keeps it: as if one after the other had
        all of it."""
        left = queue.output_left(self._lengths)
        tokens = queue.to_compute + queue.computed + left / 2
        pool_us: Floats = tokens / pool_tokens * (alone_us + left * self._step_us)
        return pool_us

    def turns_us(self, queue: PrefillQueue) -> Floats:
        """[len(queue)]"""
        _, work_us, worth = self._work(queue)
        return self._turns_us(queue, work_us, worth)

    def _turns_us(self, queue: PrefillQueue, work_us: Floats, worth: Floats) -> Floats:
        turns_us: Floats = queue.due_us + self.rules.work_order * work_us / worth
        return turns_us

    def _leave(
        self,
        now_us: float,
        queue: PrefillQueue,
        behind: Rows,
        first_us: Floats,
        alone_us: Floats,
        key: Floats,
        choice: StepChoice,
    ) -> None:
        """Those left behind: told at once where patience is over, else they come after everybody who can be on time."""
        key[behind] = queue.due_us[behind] + _AFTER_ALL
        age_us = now_us - queue.arrival_us[behind]
        patience_us = self.rules.patience * (queue.due_us[behind] - queue.arrival_us[behind])
        over = (age_us >= patience_us) & (queue.computed[behind] == 0) & (first_us > queue.due_us[behind])
        for at, token_us in zip(behind[over].tolist(), first_us[over].tolist(), strict=True):
            self._give_up(choice, queue, at, "left_behind", token_us, float(alone_us[at]))
            key[at] = np.inf

    @staticmethod
    def _give_up(
        choice: StepChoice, queue: PrefillQueue, at: int, reason: str, first_us: float, alone_us: float
    ) -> None:
        request = queue.requests[at]
        numbers = {
            "predicted_ttft_us": first_us - request.arrival_us,
            "late_us": first_us - request.due_us,
            "own_prefill_us": alone_us,
            "waiting": float(len(queue)),
        }
        choice.given_up.append(GivenUp(request, reason, numbers))

    def _start_us(self) -> float:
        """The step that runs before any of this, about."""
        return 10_000.0

    def _fill(self, budget: StepBudget, key: Floats, queue: PrefillQueue, room: Room, choice: StepChoice) -> None:
        model, rules, decodes = self.model, self.rules, budget.decodes
        tokens = decodes.count
        sequences = decodes.count + int(np.count_nonzero((queue.computed > 0) & (key < np.inf)))
        used_us, budget_us = budget.fixed_us / self._pace, math.inf
        if rules.budget:
            budget_us = choice.budget_us / self._pace - used_us
        new = (queue.computed == 0) & (queue.made == 0)
        while tokens < self._max_tokens:
            at = int(key.argmin())
            if key[at] == np.inf:
                return
            key[at] = np.inf
            request = queue.requests[at]
            if not request.computed and sequences >= self._max_sequences:
                key[queue.computed == 0] = np.inf
                continue
            offer = room.offer(request)
            if offer is None:
                if not request.computed:
                    self._short_of = float(room.kv_tokens)
                    key[new] = np.inf  # nobody new takes the room that it waits for
                continue
            chunk = min(offer.tokens, self._max_tokens - tokens)
            if budget_us < math.inf:
                chunk = min(chunk, model.chunk_within(tokens, offer.context, budget_us))
            if chunk < min(rules.least_chunk, offer.tokens):
                if decodes.count or choice.chunks:
                    if budget_us < math.inf and model.chunk_within(tokens, 0, budget_us) >= rules.least_chunk:
                        continue  # the step is too short for what it attends to, not for others
                    return
                chunk = min(offer.tokens, rules.least_chunk, self._max_tokens - tokens)
            room.take(request)
            choice.chunks.append(Chosen(request, chunk))
            chunk_us = model.chunk_us(tokens, chunk, offer.context)
            used_us, budget_us = used_us + chunk_us, budget_us - chunk_us
            if chunk == offer.tokens and not request.made:
                # Its first token comes when the whole step is over: what else is in it must not make it late.
                within_us = (request.due_us - budget.now_us) * rules.slack_share - rules.margin_us
                left_us = within_us / self._pace - used_us
                budget_us = min(budget_us, max(left_us, 0.0) if rules.first_in_time else budget_us)
            tokens += chunk
            sequences += not request.computed


_NOBODY = np.empty(0)
_AFTER_ALL = 1e15
"""Added to the deadline of those left behind: after everybody who can still be on time."""
