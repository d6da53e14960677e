"""The KV pool of a simulated worker, counted in tokens: the policy's Room, and what moves hold of it."""

from __future__ import annotations

import numpy as np

from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_sim.decode_table import DecodeTable
from hyperflexis_sim.prefix_cache import BLOCK_TOKENS, PrefixCache
from hyperflexis_sim.request import SimRequest
from hyperflexis_worker.steps.peak_use import PeakUse
from hyperflexis_worker.steps.prefill_queue import PrefillQueue, Waiting
from hyperflexis_worker.steps.step_policy import Offer


class EngineRoom:
    """One choice at a time: what was owed and promised in it starts anew with `begin`."""

    def __init__(
        self,
        kv_tokens: int,
        table: DecodeTable,
        waiting: PrefillQueue,
        lengths: OutputLengths,
        reserve_growth: bool,
        cache: PrefixCache | None = None,
    ) -> None:
        self.kv_tokens = kv_tokens
        self.cache = cache
        self.awaited: set[int] = set()
        """Numbers of requests that do not begin yet: a part of their prompt is on its way here."""
        self.begun_tokens = 0
        """Computed tokens of those that do not decode yet."""
        self.held_tokens = 0.0
        """Of moves: reserved for those that come, pinned for those that have stopped and are still read."""
        self._table = table
        self._waiting = waiting
        self._lengths = lengths
        self._reserve_growth = reserve_growth
        self._owed = 0
        """Tokens that those begun, in this step too, are yet to fill."""
        self._growth: float | None = None
        """Tokens that all who run are expected to make; None = not asked yet."""
        self._peak: PeakUse | None = None
        """Of those who run, those begun in this step too; None = not asked yet."""

    @property
    def filled(self) -> float:
        """What several share counts for each of them."""
        return self._table.context_tokens + self.begun_tokens + self.held_tokens

    @property
    def used(self) -> float:
        return self.filled - self.cache.saved_tokens if self.cache is not None else self.filled

    @property
    def free_tokens(self) -> float:
        return self.kv_tokens - self.used

    @property
    def short(self) -> bool:
        """There is no room for the next token of every decode."""
        return self._table.count > 0 and self.used + self._table.count > self.kv_tokens

    def begin(self) -> None:
        if self.cache is not None:
            self.cache.fit(self.filled)
        self._owed = int(self._waiting.to_compute[self._waiting.computed > 0].sum()) if self.begun_tokens else 0
        self._growth = self._peak = None

    def offer(self, request: Waiting) -> Offer | None:
        used = self.used + self._table.count
        if request.computed:
            # What it still needs was owed to it when it began.
            fits = used + request.to_compute <= self.kv_tokens
            return Offer(request.computed, request.to_compute) if fits else None
        cached = self._cached(request)
        need = used + self._owed + self._new(request)
        if need > self.kv_tokens:
            return None
        if self._reserve_growth and (self._table.count or self._owed):
            tokens = self.kv_tokens - self.used + self._table.context_tokens + self.begun_tokens
            new = self._new(request)
            if not self._running().fits(request.tier, new, request.made, request.max_tokens, tokens):
                return None
        return Offer(cached, _whole(request) - cached)

    def take(self, request: Waiting) -> None:
        if not request.computed:
            self._owed += self._new(request)
            if self._reserve_growth:
                self._running().add_requests([request], [self._new(request)])

    def start(self, request: SimRequest, model: StepTimeModel) -> bool:
        """Where it has not begun it does so, with what is cached of it; False where that is nothing."""
        if self.cache is None or request.computed:
            return False
        whole = _whole(request)
        request.computed = self.cache.begin(request)
        request.to_compute = whole - request.computed
        self.begun_tokens += request.computed
        if not request.made:
            request.cached_tokens = request.computed
            request.saved_us = model.prefill_us(whole) - model.prefill_us(request.to_compute, request.computed)
        return request.computed > 0

    def computed(self, request: SimRequest) -> None:
        """A chunk of it has been, and is counted."""
        if self.cache is not None:
            self.cache.computed(request, self.filled)

    def lose(self, request: SimRequest) -> None:
        """Its room is no longer its own."""
        if self.cache is not None:
            self.cache.release(request)

    def prefix_came(self, request: SimRequest, tokens: int) -> None:
        """So much of its prompt, that it waited for, has been read from a peer."""
        assert self.cache is not None
        self.cache.store(request.prefix[: tokens // BLOCK_TOKENS], self.filled)
        self.awaited.discard(request.number)

    def reserve(self, tokens: float) -> bool:
        """For a decode that is to come; only what nobody here will need by all that is known."""
        need = self.used + self._table.count + self._owed + tokens
        if self._reserve_growth:
            need += self._expected_growth()
        if need > self.kv_tokens:
            return False
        self.held_tokens += tokens
        return True

    def grown(self, tokens: int) -> None:
        """By steps that began and ended since `begin`: that much less can stay cached."""
        if self.cache is not None:
            self.cache.fit(self.filled + tokens)
        self._growth = self._peak = None

    def _cached(self, request: Waiting) -> int:
        assert isinstance(request, SimRequest)
        return self.cache.cached_tokens(request) if self.cache is not None else 0

    def _new(self, request: Waiting) -> int:
        """Tokens of room that it needs beyond what others own."""
        assert isinstance(request, SimRequest)
        return _whole(request) - (self.cache.shared_tokens(request) if self.cache is not None else 0)

    def _expected_growth(self) -> float:
        if self._growth is None:
            self._growth = float(self._table.growth().sum()) + sum(map(self._remaining, self._begun()))
        return self._growth

    def _running(self) -> PeakUse:
        if self._peak is None:
            self._peak, table, begun = PeakUse(self._lengths), self._table, self._begun()
            if table.count:
                self._peak.add([r.tier for r in table.requests], table.contexts(), table.made(), table.limits())
            if begun:
                self._peak.add_requests(begun, list(map(_whole, begun)))
        return self._peak

    def _begun(self) -> list[Waiting]:
        return [self._waiting.requests[at] for at in np.flatnonzero(self._waiting.computed).tolist()]

    def _remaining(self, request: Waiting) -> float:
        return self._lengths.remaining(request.tier, request.made, request.max_tokens)


def _whole(request: Waiting) -> int:
    """Of one that has not begun, or lost what it had: `to_compute` may leave out what is thought to be cached."""
    return request.prompt_tokens + request.made
