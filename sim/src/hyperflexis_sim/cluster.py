"""The simulation: arrivals, a dispatcher that knows only reports, workers, and messages that take their time.

Events have a total order (time, then the order in which they were made), so that a seed gives one result.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.dispatch_policy import Ask, DispatchPolicy, in_time
from hyperflexis_scheduler.core.loads import WorkerLoads
from hyperflexis_sim.delays import Delays
from hyperflexis_sim.engine import SimEngine
from hyperflexis_sim.engine_report import EngineReport
from hyperflexis_sim.noise import MeasuredNoise, Noise
from hyperflexis_sim.request import REFUSED, SimRequest
from hyperflexis_sim.tiers import Promise
from hyperflexis_worker.core.output_lengths import OutputLengths
from hyperflexis_worker.core.step_policy import GivenUp, StepPolicy

BEST_EFFORT_TTFT_US = 3.6e9
"""Of a request whose promise is broken already: after everything that still has one."""
BEST_EFFORT_TPOT_US = 1e6
"""Its decodes hurry nobody else's prefill."""

REBALANCE_US = 100_000.0
"""Between two rounds."""
PolicyFactory = Callable[[StepTimeModel], StepPolicy]


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """A GPU with an engine on it."""

    model: StepTimeModel
    """What scheduler and policies believe."""
    kv_tokens: int
    slower: float = 1.0
    """How much slower it is in truth."""
    name: str = "gpu"
    steps: Sequence[tuple[float, float]] = ()
    """Measured, in order: the time by the model, and what it took over that; none = the cluster's `step_noise`."""
    host_us: float = 0.0
    """Between two steps, seen by neither model nor policy."""


@dataclass
class Cluster:
    """Runs requests through workers. `policy_of` makes each worker's own step policy."""

    kinds: Sequence[WorkerKind]
    dispatch: DispatchPolicy
    policy_of: PolicyFactory
    delays: Delays = field(default_factory=Delays)
    step_noise: float = 0.05
    seed: int = 0
    reserve_growth: bool = True
    leap: bool = True
    promises: Mapping[str, Promise] = field(default_factory=dict)
    """What a downgrade falls to."""
    second_try: bool = True
    """A request given up goes to another worker if that one still can."""
    rebalance: bool = False
    """Idle workers get what others have not begun, as the live scheduler sees to."""

    engines: list[SimEngine] = field(init=False)
    loads: WorkerLoads = field(init=False)
    lengths: OutputLengths = field(init=False)
    """Of what finished anywhere: what dispatchers expect of each tier."""
    _charges: list[deque[tuple[int, float, float]]] = field(init=False)
    _sent: list[int] = field(init=False)
    _reported_us: list[float] = field(init=False)
    _events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = field(init=False)
    _rebalanced_us: float = 0.0
    _count: int = 0
    now_us: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.kinds)
        self.loads = WorkerLoads(max(count, 1))
        self.lengths = OutputLengths()
        self.engines = []
        for index, kind in enumerate(self.kinds):
            engine = SimEngine(
                self.policy_of(kind.model),
                kind.model.scaled(kind.slower),
                kind.kv_tokens,
                self._noise(kind, index),
                host_us=kind.host_us,
                reserve_growth=self.reserve_growth,
                leap=self.leap,
            )
            engine.on_given_up = self._given_up
            engine.on_finished = self._finished
            self.engines.append(engine)
            slot = self.loads.open()
            assert slot == index
            model = kind.model
            for column, value in zip(
                (columns.C0, columns.C1, columns.C2, columns.C3, columns.C4, columns.C5),
                (model.c0_us + model.host_us, model.c1_us, model.c2_us, model.c3_us, model.c4_us, model.c5_us),
                strict=True,
            ):
                self.loads.set(slot, column, value)
            self.loads.set(slot, columns.KV_TOKENS, kind.kv_tokens)
        self._among = np.arange(count)
        self._charges = [deque() for _ in range(count)]
        self._sent = [0] * count
        self._reported_us = [-1e18] * count
        self._events = []

    def _noise(self, kind: WorkerKind, index: int) -> Noise:
        seed = (self.seed, index)
        return MeasuredNoise(kind.steps, seed) if kind.steps else Noise(self.step_noise, seed)

    def run(self, requests: Sequence[SimRequest], until_us: float, tick: Callable[[float], None] | None = None) -> None:
        """Serves requests in order of arrival; stops at `until_us`, or when nothing is left to do."""
        arrivals = iter(requests)
        request = next(arrivals, None)
        told_us = 0.0
        while True:
            if request is not None and (not self._events or request.arrival_us <= self._events[0][0]):
                self.now_us = request.arrival_us
                if self.now_us > until_us:
                    return
                self._submit(request)
                request = next(arrivals, None)
            elif self._events:
                self.now_us, _, action, arguments = heapq.heappop(self._events)
                if self.now_us > until_us:
                    return
                action(*arguments)
            else:
                return
            if tick is not None and self.now_us - told_us > 1e6:
                told_us = self.now_us
                tick(told_us)

    def _at(self, time_us: float, action: Callable[..., None], *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._events, (time_us, self._count, action, arguments))

    def _submit(self, request: SimRequest) -> None:
        delay_us = self.delays.submit_us(self.seed, request.number)
        if delay_us:
            self._at(self.now_us + delay_us, self._place, request)
        else:
            self._place(request)

    def _place(self, request: SimRequest, among: np.ndarray | None = None) -> None:
        request.dispatched += 1
        slot = self.dispatch.choose(self._ask(request), self.loads, self._among if among is None else among).slot
        request.worker = slot
        own_us = self.kinds[slot].model.prefill_us(request.prompt_tokens)
        self._sent[slot] += 1
        self._charges[slot].append((self._sent[slot], own_us, request.prompt_tokens))
        self.loads.add(slot, columns.REQUESTS, 1)
        self.loads.add(slot, columns.QUEUED_TOKENS, request.prompt_tokens)
        self.loads.add(slot, columns.QUEUED_US, own_us)
        self._at(self.now_us + self.delays.dispatch_us, self._deliver, slot, request)

    def _ask(self, request: SimRequest) -> Ask:
        return Ask(
            request.prompt_tokens,
            self.now_us - request.arrival_us,
            request.ttft_us,
            request.tpot_us,
            request.max_tokens,
            request.tier,
            self.lengths.mean(request.tier),
        )

    def _deliver(self, slot: int, request: SimRequest) -> None:
        engine = self.engines[slot]
        version = engine.version
        engine.deliver(request, self.now_us)
        if engine.version != version:
            self._await(slot)

    def _await(self, slot: int) -> None:
        engine = self.engines[slot]
        if engine.end_us is not None:
            self._at(engine.end_us, self._ended, slot, engine.version)
            self._await_report(slot)

    def _await_report(self, slot: int) -> None:
        """A leap is no reason to be silent: it reports where its steps, one by one, would have."""
        engine = self.engines[slot]
        next_us = engine.next_end_us(self._reported_us[slot] + self.delays.report_every_us)
        if next_us is not None:
            self._at(next_us, self._ended_within, slot, engine.version)

    def _ended_within(self, slot: int, version: int) -> None:
        if self.engines[slot].version == version:
            self._tell(slot)
            self._await_report(slot)

    def _ended(self, slot: int, version: int) -> None:
        engine = self.engines[slot]
        if engine.version != version:
            return
        engine.ended(self.now_us)
        idle = engine.end_us is None
        if idle or self.now_us - self._reported_us[slot] >= self.delays.report_every_us:
            self._tell(slot)
        self._await(slot)

    def _tell(self, slot: int) -> None:
        self._reported_us[slot] = self.now_us
        self._at(self.now_us + self.delays.report_us, self._report, slot, self.engines[slot].report(self.now_us))

    def _report(self, slot: int, report: EngineReport) -> None:
        """As the scheduler's ledger: what the report does not know of yet stays charged."""
        charges = self._charges[slot]
        while charges and charges[0][0] <= report.applied:
            charges.popleft()
        loads = self.loads
        loads.set(slot, columns.REQUESTS, report.waiting + report.running + len(charges))
        loads.set(slot, columns.QUEUED_TOKENS, report.queued_tokens + sum(charge[2] for charge in charges))
        loads.set(slot, columns.QUEUED_US, report.queued_us + sum(charge[1] for charge in charges))
        loads.set(slot, columns.SHARE, report.prefill_share)
        loads.set(slot, columns.RUNNING, report.running)
        loads.set(slot, columns.CONTEXT, report.context_tokens)
        loads.set(slot, columns.KV_USED, report.kv_used)

        if self.rebalance and self.now_us >= self._rebalanced_us + REBALANCE_US:
            self._rebalanced_us = self.now_us
            self._feed_idle()

    def _feed_idle(self) -> None:
        """From the workers with the most queued work, one each, what they would do last; it is placed anew."""
        idle = int((self.loads.of(columns.REQUESTS, self._among) == 0).sum())
        queued_us = self.loads.of(columns.QUEUED_US, self._among) / self.loads.of(columns.SHARE, self._among)
        for slot in np.argsort(-queued_us)[:idle].tolist():
            request = self.engines[slot].revoke() if self.loads.get(slot, columns.REQUESTS) > 1 else None
            if request is not None:
                request.moves += 1
                self._at(self.now_us + 2 * self.delays.report_us, self._place, request)

    def _finished(self, request: SimRequest, now_us: float) -> None:
        self.lengths.learn(request.tier, request.made)
        first_us, last_us = self.delays.return_us(self.seed, request.number)
        request.first_us += first_us
        request.last_us = max(request.last_us + last_us, request.first_us)

    def _given_up(self, given_up: GivenUp, now_us: float) -> None:
        request = given_up.request
        assert isinstance(request, SimRequest)
        self._at(now_us + self.delays.report_us, self._returned, request)

    def _returned(self, request: SimRequest) -> None:
        """Another worker, if one still can by its model; else what its tier says."""
        if self.second_try and request.dispatched == 1 and len(self.kinds) > 1:
            others = self._among[self._among != request.worker]
            able = in_time(self._ask(request), self.loads, others)
            if len(able):
                self._place(request, able)
                return
        kind, _, target = request.on_violation.partition(":")
        if kind == "refuse" or (kind == "downgrade" and target not in self.promises):
            request.state = REFUSED
            request.refused_us = self.now_us
            return
        if kind == "downgrade":
            fallback = self.promises[target]
            request.downgraded = True
            request.tier, request.on_violation = fallback.tier, fallback.on_violation
            request.ttft_us, request.tpot_us = fallback.ttft_us, fallback.tpot_us
            request.max_gap_us, request.weight = fallback.max_gap_us, fallback.weight
        else:
            request.best_effort = True
            request.ttft_us, request.tpot_us = BEST_EFFORT_TTFT_US, max(request.tpot_us, BEST_EFFORT_TPOT_US)
        request.dispatched = 0
        request.due_us = request.arrival_us + request.ttft_us
        self._place(request)
