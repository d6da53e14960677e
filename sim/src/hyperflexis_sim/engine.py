"""One simulated worker: the worker core's step policy, and a clock that moves as the step-time model says.

Runs of steps in which nothing can change (decodes only, nobody waits) are taken in one leap. A request that turns up
in the middle of such a run cuts it at the end of the step then running, so that leaping changes nothing but the time
the simulation takes (a property test says so).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_sim.decode_table import DecodeTable
from hyperflexis_sim.engine_moves import EngineMoves
from hyperflexis_sim.engine_report import EngineReport
from hyperflexis_sim.engine_room import EngineRoom
from hyperflexis_sim.engine_run import LONGEST_LEAP, Run, times_us
from hyperflexis_sim.noise import Noise
from hyperflexis_sim.prefix_cache import PrefixCache
from hyperflexis_sim.request import FINISHED, RUNNING, SimRequest
from hyperflexis_worker.steps.prefill_queue import PrefillQueue
from hyperflexis_worker.steps.queue_load import queue_load
from hyperflexis_worker.steps.step_policy import GivenUp, StepPolicy

MOST_MOVES = 3


class SimEngine:
    """`truth` is how long steps really take; the policy believes in its own model."""

    def __init__(
        self,
        policy: StepPolicy,
        truth: StepTimeModel,
        kv_tokens: int,
        noise: Noise,
        *,
        host_us: float = 0.0,
        reserve_growth: bool,
        leap: bool = True,
        cache: PrefixCache | None = None,
    ) -> None:
        self.policy = policy
        self.truth = truth
        self._as_believed = truth == policy.model
        """Policies here keep the model that they begin with."""
        self.kv_tokens = kv_tokens
        self.applied = 0
        self.version = 0
        """Of the next end; an event with an older one is void."""
        self.preemptions = 0
        self.steps = 0
        self.waiting = PrefillQueue()
        self.table = DecodeTable()
        self.lengths = OutputLengths()
        self.cache = cache
        """None = no two prompts begin alike."""
        self.room = EngineRoom(kv_tokens, self.table, self.waiting, self.lengths, reserve_growth, cache)
        self._noise = noise
        self._host_us = host_us
        self._leap = leap
        self._run: Run | None = None
        self.moves = EngineMoves(self)
        self.on_given_up: Callable[[GivenUp, float], None] = lambda given_up, now_us: None
        self.on_finished: Callable[[SimRequest, float], None] = lambda request, now_us: None
        self.on_started: Callable[[SimRequest, float], None] | None = None
        """Its first chunk begins."""
        self.on_first_token: Callable[[SimRequest, float], None] | None = None
        self.on_boundary: Callable[[float], None] = lambda now_us: None
        self.on_preempted: Callable[[SimRequest, float], None] = lambda request, now_us: None

    @property
    def end_us(self) -> float | None:
        """When the steps under way end; None = idle."""
        return None if self._run is None else float(self._run.ends_us[-1])

    @property
    def kv_used(self) -> float:
        return self.room.used

    def cached_tokens(self, request: SimRequest, now_us: float) -> int:
        """Of its prompt, what would be found here now."""
        if self.cache is None:
            return 0
        self._catch_up(now_us)
        return self.cache.cached_tokens(request)

    def deliver(self, request: SimRequest, now_us: float) -> None:
        """A request has arrived here; one of which a part is still on its way waits for that outside the queue."""
        self.applied += 1
        request.state = RUNNING
        if request.number not in self.room.awaited:
            self.queue(request, now_us)

    def queue(self, request: SimRequest, now_us: float) -> None:
        self.waiting.add(request)
        if self._run is None:
            self._start(now_us)
        else:
            self._cut(now_us)

    def _cut(self, now_us: float) -> None:
        """A leap ends with the step that runs now: somebody comes or goes."""
        run = self._run
        assert run is not None
        steps = int(np.searchsorted(run.ends_us, now_us, "left")) + 1
        if steps < len(run):
            self._noise.give_back(run.keep(steps))
            self.version += 1

    def settle(self, now_us: float) -> None:
        """The steps of a leap that are over count, and it ends with the one that runs now."""
        run = self._run
        if run is None or len(run) == 1:
            return
        self._cut(now_us)
        if ended := self._catch_up(now_us):
            self.steps += ended
            self.table.advance(run.ends_us[:ended])
            run.drop(ended)

    def wake(self, now_us: float) -> None:
        """Something has changed: an engine that is idle looks again."""
        if self._run is None and (len(self.waiting) or self.moves.joining):
            self._start(now_us)

    def revoke(self) -> SimRequest | None:
        """The newest request that has not begun and may still move, taken away."""
        begun = [chosen.request for chosen in self._run.choice.chunks] if self._run else []
        for request in sorted(self.waiting.requests, key=lambda request: -request.arrival_us)[:8]:
            assert isinstance(request, SimRequest)
            if not request.computed and not request.made and request not in begun and request.moves < MOST_MOVES:
                self.waiting.remove(request)
                return request
        return None

    def ended(self, now_us: float) -> None:
        """The steps under way are over; the next one begins."""
        run = self._run
        assert run is not None
        self._catch_up(now_us)
        self._run = None
        self.steps += len(run)
        self._learn(run, len(run))
        if self.table.count:
            for request in self.table.advance(run.ends_us, run.choice.decode):
                self._finish(request, now_us)
        for chosen, tokens in run.choice.chunks:
            assert isinstance(chosen, SimRequest)
            self._prefilled(chosen, tokens, now_us)
        if self.moves.watched:
            self.on_boundary(now_us)
        self._start(now_us)

    def _catch_up(self, now_us: float) -> int:
        """As if a leap were taken step by step. Returns the steps of it that are over; never the last, which `ended`
        ends."""
        run = self._run
        if run is None or len(run) == 1:
            return 0
        ended = min(run.ended(now_us), len(run) - 1)
        self._learn(run, ended)
        self.room.grown(ended * self.table.count)
        return ended

    def _learn(self, run: Run, ended: int) -> None:
        """The policy hears of each step once, in the middle of a leap too."""
        for at in range(run.told, ended):
            took_us = float(run.took_us[at]) + self._host_us
            self.policy.stepped(run.choice, run.decodes, run.waiting_left, float(run.predicted_us[at]), took_us)
        run.told = ended

    def next_end_us(self, from_us: float) -> float | None:
        """The first step end at or after `from_us`, that of the whole run left out; None where there is none."""
        run = self._run
        if run is None or len(run) == 1:
            return None
        at = int(np.searchsorted(run.ends_us, from_us, "left"))
        return float(run.ends_us[at]) if at < len(run.ends_us) - 1 else None

    def report(self, now_us: float) -> EngineReport:
        """As of the last step that ended, be it in the middle of a leap."""
        grown = self._catch_up(now_us) * self.table.count
        policy, queue = self.policy, self.waiting
        begun = int(np.count_nonzero(queue.computed))
        return EngineReport(
            applied=self.applied,
            waiting=len(queue) - begun,
            running=self.table.count + begun,
            queued=queue_load(policy, queue, now_us),
            prefill_share=getattr(policy, "prefill_share", 1.0),
            pace=getattr(policy, "pace", 1.0),
            context_tokens=self.table.context_tokens + grown,
            kv_used=self.kv_used + grown,
            cache=self.cache.take_events() if self.cache is not None else None,
        )

    def _prefilled(self, request: SimRequest, tokens: int, now_us: float) -> None:
        request.computed += tokens
        request.to_compute -= tokens
        self.room.begun_tokens += tokens
        self.room.computed(request)
        if request.to_compute:
            self.waiting.progressed(request)
            return
        self.waiting.remove(request)
        self.room.begun_tokens -= request.computed
        if not request.made:
            request.first_us = now_us
            if self.on_first_token is not None:
                self.on_first_token(request, now_us)
            request.late_tokens = int(now_us > request.arrival_us + request.promised_ttft_us)
        else:
            request.worst_gap_us = max(request.worst_gap_us, now_us - request.last_us)
        request.last_us = now_us
        request.made += 1
        if request.made >= request.output_tokens:
            self._finish(request, now_us)
        else:
            self.table.add(request, now_us, self.lengths.mean(request.tier))

    def _finish(self, request: SimRequest, now_us: float) -> None:
        request.state = FINISHED
        self.room.lose(request)
        self.policy.learn_output(request.tier, request.made)
        self.lengths.learn(request.tier, request.made)
        self.on_finished(request, now_us)

    def _start(self, now_us: float) -> None:
        self.version += 1
        joined = self.moves.take_joining()
        while self.room.short:
            self._preempt(now_us)
        self.room.begin()
        decodes = self.table.view()
        choice = self.policy.choose(now_us, decodes, self.waiting, self.room)
        if choice.given_up:
            for given_up in choice.given_up:
                assert isinstance(given_up.request, SimRequest)
                self.waiting.remove(given_up.request)
                self.room.begun_tokens -= given_up.request.computed
                given_up.request.computed, given_up.request.to_compute = 0, given_up.request.prompt_tokens
                self.room.lose(given_up.request)
                self.on_given_up(given_up, now_us)
        if not choice.chunks and not self.table.count:
            if len(self.waiting) and self.room.begun_tokens:
                # Prefills that began hold the pool between them: the last one yields.
                self._yield_begun(now_us)
                self._start(now_us)
            return
        decoding = self.table.count if choice.decode is None else int(choice.decode.sum())
        steps = 1
        for chosen in choice.chunks:
            assert isinstance(chosen.request, SimRequest)
            if self.on_started is not None and not chosen.request.computed:
                self.on_started(chosen.request, now_us)
            if self.room.start(chosen.request, self.policy.model):
                self.waiting.progressed(chosen.request)
        if (
            self._leap
            and not self.moves.watched
            and choice.repeats
            and not choice.chunks
            and not len(self.waiting)
            and choice.decode is None
        ):
            room = int((self.kv_tokens - self.kv_used) // decoding)
            steps = max(1, min(self.table.least_left(), LONGEST_LEAP, room))
        context = self.table.context_tokens * (decoding / max(self.table.count, 1))
        predicted_us = times_us(self.policy.model, choice, decoding, context, steps)
        true_us = predicted_us if self._as_believed else times_us(self.truth, choice, decoding, context, steps)
        took_us = true_us * self._noise.take(true_us)
        ends_us = now_us + np.cumsum(took_us + self._host_us)
        left = len(self.waiting) > len(choice.chunks) or any(c.tokens < c.request.to_compute for c in choice.chunks)
        for request in joined:
            request.longest_move_us = max(request.longest_move_us, float(ends_us[0]) - request.last_us)
        self._run = Run(choice, decodes, ends_us, predicted_us, took_us, left)

    def _preempt(self, now_us: float) -> None:
        """KV ran out: the decode with the most slack loses its blocks and is computed again later."""
        request = self.table.remove(self.table.most_slack())
        request.to_compute, request.computed = request.prompt_tokens + request.made, 0
        self.room.lose(request)
        request.due_us = request.first_us + request.made * request.tpot_us
        self.waiting.add(request)
        self.preemptions += 1
        self.on_preempted(request, now_us)

    def _yield_begun(self, now_us: float) -> None:
        request = next(r for r in reversed(self.waiting.requests) if r.computed)
        assert isinstance(request, SimRequest)
        self.room.begun_tokens -= request.computed
        request.to_compute, request.computed = request.to_compute + request.computed, 0
        self.room.lose(request)
        self.waiting.progressed(request)
        self.preemptions += 1
        self.on_preempted(request, now_us)
