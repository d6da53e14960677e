"""Running requests on their way from one simulated worker to another.

The target reserves room, then reads full blocks while the source goes on, prefill included; once at most two blocks are
missing, the source lets go at the end of a step, the target reads what is left and decodes on. Whoever ends, loses its
blocks or outgrows what was reserved before that stays where it is. That last read overtakes those of requests that have
not been stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from hyperflexis_sim.engine import SimEngine
from hyperflexis_sim.request import SimRequest
from hyperflexis_sim.wires import At, Wires

BLOCK_TOKENS = 64
LAST_TOKENS = 2 * BLOCK_TOKENS
"""What may be left to read when the source lets go."""
SPARE_TOKENS = LAST_TOKENS
"""Reserved beyond its context as it is, for what it makes meanwhile."""


@dataclass(slots=True, eq=False)
class MoveState:
    request: SimRequest
    source: int
    target: int
    reserved: float = 0.0
    pulled: int = 0
    pulling: bool = False
    stopped: bool = False
    over: bool = False


class Moves:
    def __init__(self, engines: Sequence[SimEngine], wires: Wires, at: At, renew: Callable[[int], None]) -> None:
        """`renew`: what a worker runs may end at another time than was said."""
        self._engines = engines
        self._wires = wires
        self._at = at
        self._renew = renew
        self._moves: dict[int, MoveState] = {}
        self.on_over: Callable[[MoveState, bool, float], None] = lambda move, moved, now_us: None
        for slot, engine in enumerate(engines):
            engine.on_boundary = self._boundary_of(slot)
            engine.on_preempted = self.ended

    def __contains__(self, request: SimRequest) -> bool:
        return request.number in self._moves

    def begin(self, request: SimRequest, source: int, target: int, now_us: float) -> None:
        """The target has been told."""
        move = MoveState(request, source, target)
        if request.number in self._moves:
            self.on_over(move, False, now_us)
            return
        self._moves[request.number] = move
        engine = self._engines[source]
        context = engine.moves.context_of(request, now_us)
        self._renew(source)
        here = request in engine.table or request in engine.waiting
        if not here or not self._reserve(
            move, max(context, request.computed + request.to_compute) + SPARE_TOKENS, now_us
        ):
            self._drop(move, now_us)
            return
        engine.moves.watch(request, now_us)
        self._pull(move, now_us)

    def ended(self, request: SimRequest, now_us: float) -> None:
        """It is done, given up, or has lost its blocks: there is nothing to move."""
        move = self._moves.get(request.number)
        if move is not None and not move.stopped:
            self._drop(move, now_us)

    def _reserve(self, move: MoveState, tokens: float, now_us: float) -> bool:
        """So much in all."""
        granted = self._engines[move.target].moves.reserve(tokens - move.reserved, now_us)
        self._renew(move.target)
        if granted:
            move.reserved = tokens
        return granted

    def _drop(self, move: MoveState, now_us: float) -> None:
        """It stays. What a read may still write to is not free before the read is over."""
        del self._moves[move.request.number]
        move.over = True
        self._engines[move.source].moves.unwatch(move.request)
        if not move.pulling:
            self._at(now_us, self._release, move.target, move.reserved)
        self.on_over(move, False, now_us)

    def _release(self, slot: int, tokens: float, now_us: float) -> None:
        if tokens:
            self._engines[slot].moves.release(tokens, now_us)
            self._renew(slot)

    def _pull(self, move: MoveState, now_us: float) -> None:
        """Full blocks that are there and not read yet."""
        ready = self._engines[move.source].moves.context_of(move.request, now_us) // BLOCK_TOKENS * BLOCK_TOKENS
        self._renew(move.source)
        if move.pulling or ready <= move.pulled:
            return
        move.pulling = True
        tokens = ready - move.pulled
        self._wires.read(move.source, move.target, tokens, False, now_us, partial(self._pulled, move, ready))

    def _pulled(self, move: MoveState, ready: int, now_us: float) -> None:
        move.pulling = False
        if move.over:
            self._release(move.target, move.reserved, now_us)
            return
        move.pulled = ready
        self._pull(move, now_us)

    def _boundary_of(self, slot: int) -> Callable[[float], None]:
        return lambda now_us: self._boundary(slot, now_us)

    def _boundary(self, slot: int, now_us: float) -> None:
        engine = self._engines[slot]
        for request in list(engine.moves.watched.values()):
            move = self._moves[request.number]
            if request in engine.table and not move.pulling:
                context = engine.table.context_of(request)
                if context - move.pulled <= LAST_TOKENS:
                    self._stop(move, context, now_us)
                    continue
            self._pull(move, now_us)

    def _stop(self, move: MoveState, context: int, now_us: float) -> None:
        if context > move.reserved and not self._reserve(move, context + SPARE_TOKENS, now_us):
            self._drop(move, now_us)
            return
        self._engines[move.source].moves.let_go(move.request)
        move.stopped = True
        tokens = context - move.pulled
        self._wires.read(move.source, move.target, tokens, True, now_us, partial(self._arrived, move, context))

    def _arrived(self, move: MoveState, context: int, now_us: float) -> None:
        request = move.request
        del self._moves[request.number]
        move.over = True
        self._release(move.source, context, now_us)
        request.worker = move.target
        request.migrations += 1
        self._engines[move.target].moves.join(request, move.reserved, now_us)
        self._renew(move.target)
        self.on_over(move, True, now_us)
