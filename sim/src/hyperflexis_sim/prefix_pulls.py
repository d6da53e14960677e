"""What reading a cached prefix from a peer could gain at most (docs/scheduling.md): the workers' own reads take longer.

A request waits in its worker's queue until its prefix has come, which delays nobody else. Reads out of a worker follow
one another, and so do those into one; each takes a set-up beside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hyperflexis_scheduler.core.dispatch_policy import Ask, Choice, EarliestFirstToken
from hyperflexis_scheduler.core.loads import Floats, Slots, WorkerLoads
from hyperflexis_sim.engine import SimEngine
from hyperflexis_sim.request import SimRequest
from hyperflexis_sim.wires import At, WireRules


class PrefixPulls:
    def __init__(self, engines: Sequence[SimEngine], wires: WireRules, at: At, renew: Callable[[int], None]) -> None:
        """`renew`: what a worker runs may end at another time than was said."""
        self._engines = engines
        self._wires = wires
        self._at = at
        self._renew = renew
        self._earliest = EarliestFirstToken()
        self._out_us = np.zeros(len(engines))
        self._in_us = np.zeros(len(engines))
        self.read_us = 0.0
        """Time that links were busy, all together."""

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots, held: Floats, now_us: float) -> tuple[Choice, int]:
        """As EarliestFirstToken, each worker having what is quicker: its own part of the prompt, or the longest that
        any has, read while others are served. Returns what it will need not compute, too."""
        source, most = int(held.argmax()), float(held.max())
        own = held[among]
        alone_us = self._earliest.cost_us(ask._replace(cached_tokens=own), loads.view(among))
        read_us = np.array([self._ready_us(source, slot, most - held[slot], now_us)[1] for slot in among]) - now_us
        pulled = ask._replace(cached_tokens=np.full(len(among), most), read_us=read_us)
        with_us = self._earliest.cost_us(pulled, loads.view(among))
        pulls = with_us < alone_us
        at = int(np.where(pulls, with_us, alone_us).argmin())
        choice = Choice(int(among[at]), "earliest_first_token", {"candidates": len(among)})
        return choice, int(most if pulls[at] else own[at])

    def begin(self, request: SimRequest, slot: int, held: Floats, now_us: float) -> int:
        """Reads for it what a peer has more of, if it is there before this could have been computed here. Returns how
        much of its prompt will be here then."""
        source, most, own = int(held.argmax()), int(held.max()), int(held[slot])
        if most <= own:
            return own
        engine = self._engines[slot]
        model, queue = engine.policy.model, engine.waiting
        begin_us, ready_us = self._ready_us(source, slot, most - own, now_us)
        queued_us = float((queue.to_compute * (model.c2_us + model.c3_us * (queue.to_compute / 2))).sum())
        if ready_us - now_us >= queued_us + model.prefill_us(most - own, own):
            return own
        busy_us = (most - own) * self._wires.bytes_per_token / (self._wires.rate(source, slot) * 1e3)
        self._out_us[source] = self._in_us[slot] = begin_us + busy_us
        self.read_us += busy_us
        request.pulled_tokens = most - own
        engine.room.awaited.add(request.number)
        self._at(ready_us, self._came, slot, request, most)
        return most

    def _ready_us(self, source: int, target: int, tokens: float, now_us: float) -> tuple[float, float]:
        """When such a read would begin to be on the link, and when it would be over."""
        begin_us = max(now_us, float(self._out_us[source]), float(self._in_us[target]))
        if source == target or tokens <= 0:
            return now_us, now_us
        took_us = tokens * self._wires.bytes_per_token / (self._wires.rate(source, target) * 1e3)
        return begin_us, max(begin_us + took_us, now_us + self._wires.setup_us + took_us)

    def _came(self, slot: int, request: SimRequest, tokens: int, now_us: float) -> None:
        self._engines[slot].moves.prefix_came(request, tokens, now_us)
        self._renew(slot)
