"""Where a request goes, given what workers keep of its prompt: the scheduler's side of prefix caches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyperflexis_scheduler.core.dispatch_policy import Ask, Choice, DispatchPolicy
from hyperflexis_scheduler.core.loads import Floats, Slots, WorkerLoads
from hyperflexis_scheduler.core.prefix_index import PrefixIndex
from hyperflexis_sim.engine import SimEngine
from hyperflexis_sim.engine_report import EngineReport
from hyperflexis_sim.prefix_cache import BLOCK_TOKENS
from hyperflexis_sim.prefix_pulls import PrefixPulls
from hyperflexis_sim.prefix_rules import PrefixRules
from hyperflexis_sim.request import SimRequest


class PrefixPlacement:
    def __init__(
        self,
        dispatch: DispatchPolicy,
        loads: WorkerLoads,
        engines: Sequence[SimEngine],
        rules: PrefixRules,
        pulls: PrefixPulls | None,
    ) -> None:
        self._dispatch = dispatch
        self._loads = loads
        self._engines = engines
        self._rules = rules
        self._pulls = pulls
        self._index = PrefixIndex()

    def choose(self, request: SimRequest, ask: Ask, among: Slots, now_us: float) -> tuple[Choice, int]:
        """The worker, and how many tokens of the prompt it is thought to need not compute."""
        if not request.prefix:
            return self._dispatch.choose(ask, self._loads, among), 0
        held = self._held(request, now_us)
        request.somewhere_tokens = int(held.max())
        if self._pulls is not None:
            return self._pulls.choose(ask, self._loads, among, held, now_us)
        cached = self._cached(request, among) if self._rules.aware else None
        choice = self._dispatch.choose(ask._replace(cached_tokens=cached), self._loads, among)
        return choice, 0 if cached is None else int(cached[among == choice.slot][0])

    def arrives(self, request: SimRequest, slot: int, now_us: float) -> None:
        """Before its worker has it in its queue."""
        if not request.prefix:
            return
        known = self._engines[slot].cached_tokens(request, now_us)
        if self._pulls is not None:
            known = max(known, self._pulls.begin(request, slot, self._held(request, now_us), now_us))
        request.to_compute = request.prompt_tokens - known

    def reported(self, slot: int, report: EngineReport) -> None:
        if report.cache is None:
            return
        if report.cache.lost:
            self._index.forget(slot)
        for stored, digest in report.cache.changes:
            (self._index.stored if stored else self._index.removed)(slot, digest)

    def _held(self, request: SimRequest, now_us: float) -> Floats:
        """[workers] Tokens of its prompt at each, in truth."""
        return np.array([float(engine.cached_tokens(request, now_us)) for engine in self._engines])

    def _cached(self, request: SimRequest, among: Slots) -> Floats | None:
        """As the live scheduler's Placement."""
        blocks = self._index.cached_blocks(b"".join(request.prefix), among)
        return None if blocks is None else np.minimum(blocks * BLOCK_TOKENS, request.prompt_tokens - 1)
