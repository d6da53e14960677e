"""The simulation: arrivals, a dispatcher that knows only reports, workers, and messages that take their time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.dispatch_policy import Ask, DispatchPolicy, Prospect, in_time
from hyperflexis_scheduler.core.loads import WorkerLoads
from hyperflexis_sim.decode_book import DecodeBook
from hyperflexis_sim.delays import Delays
from hyperflexis_sim.disaggregation import Disaggregation, Plan
from hyperflexis_sim.engine import SimEngine
from hyperflexis_sim.engine_report import EngineReport
from hyperflexis_sim.events import Events
from hyperflexis_sim.load_ledger import LoadLedger
from hyperflexis_sim.noise import MeasuredNoise, Noise
from hyperflexis_sim.prefix_cache import PrefixCache
from hyperflexis_sim.prefix_placement import PrefixPlacement
from hyperflexis_sim.prefix_pulls import PrefixPulls
from hyperflexis_sim.prefix_rules import PrefixRules
from hyperflexis_sim.request import SimRequest
from hyperflexis_sim.tiers import Promise
from hyperflexis_sim.wires import WireRules
from hyperflexis_sim.worker_kind import WorkerKind
from hyperflexis_worker.steps.step_policy import GivenUp, StepPolicy

REBALANCE_US = 100_000.0
"""Between two rounds."""
PolicyFactory = Callable[[StepTimeModel], StepPolicy]


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
    plan: Plan | None = None
    """Roles and moves of running requests; None = every request stays where it was prefilled."""
    wires: WireRules = WireRules()
    prefixes: PrefixRules = PrefixRules()
    caches: bool = False
    """Workers keep prefixes. Of no use, but no harm, where requests name none."""
    leaves: Sequence[tuple[float, int]] = ()
    """(microseconds, worker): from then on nothing new goes there."""

    engines: list[SimEngine] = field(init=False)
    book: DecodeBook = field(init=False)
    ledger: LoadLedger = field(init=False)
    lengths: OutputLengths = field(init=False)
    """Of what finished anywhere: what dispatchers expect of each tier."""
    moves: Disaggregation | None = None
    empty_us: dict[int, float] = field(default_factory=dict)
    """When each worker that left had nothing more to do."""
    _awaited: list[int] = field(init=False)
    _reported_us: list[float] = field(init=False)
    events: Events = field(default_factory=Events)
    _rebalanced_us: float = 0.0

    def __post_init__(self) -> None:
        count = len(self.kinds)
        self.lengths = OutputLengths()
        self.ledger = LoadLedger([kind.model for kind in self.kinds], [kind.kv_tokens for kind in self.kinds])
        self.book = DecodeBook(self.loads, self.lengths)
        self.engines = [self._engine(kind, index) for index, kind in enumerate(self.kinds)]
        self._among = np.arange(count)
        self._kv_tokens = np.array([kind.kv_tokens for kind in self.kinds])
        self._reported_us = [-1e18] * count
        self._awaited = [-1] * count
        later = self.events.later
        if self.plan is not None:
            self.moves = Disaggregation(
                self.plan, self.engines, self.loads, self.book, self.wires, self.delays, later, self._renew
            )
        pulls = PrefixPulls(self.engines, self.wires, later, self._renew) if self.prefixes.pull else None
        self._placement = PrefixPlacement(self.dispatch, self.loads, self.engines, self.prefixes, pulls)
        for time_us, slot in self.leaves:
            self.events.at(time_us, self._leave, slot)

    def _engine(self, kind: WorkerKind, index: int) -> SimEngine:
        engine = SimEngine(
            self.policy_of(kind.model.hosted(kind.host_us)),
            kind.model.scaled(kind.slower),
            kind.kv_tokens,
            self._noise(kind, index),
            host_us=kind.host_us,
            reserve_growth=self.reserve_growth,
            leap=self.leap,
            cache=PrefixCache(kind.kv_tokens) if self.caches else None,
        )
        engine.on_given_up = self._given_up
        engine.on_finished = self._finished
        engine.on_first_token = lambda request, now_us: self.events.at(
            now_us + self.delays.report_us, self._first_token, request, index
        )
        return engine

    @property
    def loads(self) -> WorkerLoads:
        return self.ledger.loads

    def _noise(self, kind: WorkerKind, index: int) -> Noise:
        seed = (self.seed, index)
        return MeasuredNoise(kind.steps, seed) if kind.steps else Noise(self.step_noise, seed)

    def run(self, requests: Sequence[SimRequest], until_us: float, tick: Callable[[float], None] | None = None) -> None:
        """Serves requests in order of arrival; stops at `until_us`, or when nothing is left to do."""
        events, arrivals = self.events, iter(requests)
        request = next(arrivals, None)
        told_us = 0.0
        while True:
            next_us = events.next_us
            if request is not None and (next_us is None or request.arrival_us <= next_us):
                events.now_us = request.arrival_us
                if events.now_us > until_us:
                    return
                self._submit(request)
                request = next(arrivals, None)
            elif next_us is None or not events.run_next(until_us):
                return
            if tick is not None and events.now_us - told_us > 1e6:
                told_us = events.now_us
                tick(told_us)

    @property
    def now_us(self) -> float:
        return self.events.now_us

    def _leave(self, slot: int) -> None:
        self._among = self._among[self._among != slot]
        if self.moves is not None:
            self.moves.leave(slot)
            self.moves.on_left = self._left
        self.empty_us[slot] = self.now_us

    def _left(self, slot: int, now_us: float) -> None:
        """A request has ended there, or gone elsewhere."""
        if slot in self.empty_us:
            self.empty_us[slot] = now_us

    def _submit(self, request: SimRequest) -> None:
        if request.prompt_tokens + request.output_tokens > self._kv_tokens.max():
            request.refuse(self.now_us)  # no worker could ever hold it, whatever the policy
            return
        delay_us = self.delays.submit_us(self.seed, request.number)
        if delay_us:
            self.events.at(self.now_us + delay_us, self._place, request)
        else:
            self._place(request)

    def _place(self, request: SimRequest, among: np.ndarray | None = None) -> None:
        request.dispatched += 1
        among = self._able(request) if among is None else among
        ask = self._ask(request)
        choice, cached = self._placement.choose(request, ask, among, self.now_us)
        slot = request.worker = choice.slot
        tokens = max(request.prompt_tokens - cached, 1)
        foretold = choice.foretold
        if foretold is None or cached:
            left = ask._replace(cached_tokens=np.array([float(cached)]))
            foretold = Prospect(left, self.loads.view(np.array([slot]))).of(0)
        self.ledger.charge(slot, tokens, self.kinds[slot].model.prefill_us(tokens, cached), foretold["turn_us"])
        self.events.at(self.now_us + self.delays.dispatch_us, self._deliver, slot, request)

    def _able(self, request: SimRequest) -> np.ndarray:
        """Where it may be prefilled."""
        among = self._among if self.moves is None else self.moves.candidates(request)
        fits = self._kv_tokens[among] >= request.prompt_tokens + request.output_tokens
        return among if fits.all() or not fits.any() else among[fits]

    def _ask(self, request: SimRequest) -> Ask:
        return Ask(
            request.prompt_tokens,
            self.now_us - request.arrival_us,
            request.ttft_us,
            request.tpot_us,
            request.max_tokens,
            request.tier,
            min(self.lengths.mean(request.tier), request.max_tokens),
            request.weight,
        )

    def _deliver(self, slot: int, request: SimRequest) -> None:
        self._placement.arrives(request, slot, self.now_us)
        self.engines[slot].deliver(request, self.now_us)
        self._renew(slot)

    def _renew(self, slot: int) -> None:
        """What it runs may end at another time than was said, or it was idle and runs now."""
        if self.engines[slot].version != self._awaited[slot]:
            self._await(slot)

    def _await(self, slot: int) -> None:
        engine = self.engines[slot]
        self._awaited[slot] = engine.version
        if engine.end_us is not None:
            self.events.at(engine.end_us, self._ended, slot, engine.version)
            self._await_report(slot)

    def _await_report(self, slot: int) -> None:
        """A leap is no reason to be silent: it reports where its steps, one by one, would have."""
        engine = self.engines[slot]
        next_us = engine.next_end_us(self._reported_us[slot] + self.delays.report_every_us)
        if next_us is not None:
            self.events.at(next_us, self._ended_within, slot, engine.version)

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
        self.events.at(self.now_us + self.delays.report_us, self._report, slot, self.engines[slot].report(self.now_us))

    def _report(self, slot: int, report: EngineReport) -> None:
        self.ledger.report(slot, report)
        self.book.paced(slot)
        self._placement.reported(slot, report)
        if self.moves is not None:
            self.moves.reported(self.now_us)
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
                self.events.at(self.now_us + 2 * self.delays.report_us, self._place, request)

    def _first_token(self, request: SimRequest, slot: int) -> None:
        self.book.begun(request, slot, self.now_us)
        if self.moves is not None:
            self.moves.place(request, slot, self.now_us)

    def _finished(self, request: SimRequest, now_us: float) -> None:
        self.lengths.learn(request.tier, request.made)
        self._ended_there(request, now_us)
        self._left(request.worker, now_us)
        first_us, last_us = self.delays.return_us(self.seed, request.number)
        request.first_us += first_us
        request.last_us = max(request.last_us + last_us, request.first_us)

    def _given_up(self, given_up: GivenUp, now_us: float) -> None:
        request = given_up.request
        assert isinstance(request, SimRequest)
        self._ended_there(request, now_us)
        self.events.at(now_us + self.delays.report_us, self._returned, request)

    def _ended_there(self, request: SimRequest, now_us: float) -> None:
        if self.moves is not None:
            self.moves.ended(request, now_us)
        self.events.at(now_us + self.delays.report_us, self.book.gone, request)

    def _returned(self, request: SimRequest) -> None:
        """Another worker, if one still can by its model; else what its tier says."""
        if self.second_try and request.dispatched == 1 and len(self.kinds) > 1:
            others = self._able(request)
            others = others[others != request.worker]
            able = in_time(self._ask(request), self.loads, others)
            if len(able):
                self._place(request, able)
                return
        if request.fall_back(self.promises):
            self._place(request)
        else:
            request.refuse(self.now_us)
