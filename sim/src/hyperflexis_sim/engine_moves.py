"""Requests that come to a simulated engine, or leave it, with their KV caches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyperflexis_sim.request import SimRequest

if TYPE_CHECKING:
    from hyperflexis_sim.engine import SimEngine


class EngineMoves:
    """What is changed here is seen by the next step, as if every step had been taken on its own."""

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine
        self.watched: dict[int, SimRequest] = {}
        """On the move from here, by number: while there are any, every step end is told to `on_boundary`."""
        self.joining: list[SimRequest] = []
        """They have come, and decode from the next step on."""

    def reserve(self, tokens: float, now_us: float) -> bool:
        """Room for a decode that is to come; False where there is none."""
        self._engine.settle(now_us)
        return self._engine.room.reserve(tokens)

    def release(self, tokens: float, now_us: float) -> None:
        """Room held for a move is free again."""
        self._engine.settle(now_us)
        self._engine.room.held_tokens -= tokens
        self._engine.wake(now_us)

    def watch(self, request: SimRequest, now_us: float) -> None:
        """It is on the move from here."""
        self._engine.settle(now_us)
        self.watched[request.number] = request

    def unwatch(self, request: SimRequest) -> None:
        self.watched.pop(request.number, None)

    def let_go(self, request: SimRequest) -> int:
        """At a step end: it stops decoding here; its KV stays until `release`. Returns its context in tokens."""
        del self.watched[request.number]
        self._engine.table.remove(self._engine.table.place(request))
        self._engine.room.lose(request)
        self._engine.room.held_tokens += request.computed
        return request.computed

    def join(self, request: SimRequest, reserved: float, now_us: float) -> None:
        """It goes on decoding here, from the next step on, in the room that was reserved."""
        self._engine.settle(now_us)
        self._engine.room.held_tokens += request.computed - reserved
        self.joining.append(request)
        self._engine.wake(now_us)

    def context_of(self, request: SimRequest, now_us: float) -> int:
        """Tokens of it whose KV is here."""
        self._engine.settle(now_us)
        return self._engine.table.context_of(request) if request in self._engine.table else request.computed

    def take_joining(self) -> list[SimRequest]:
        joined = list(self.joining)
        self.joining.clear()
        for request in joined:
            self._engine.room.held_tokens -= request.computed
            self._engine.table.add(request, request.last_us, self._engine.lengths.mean(request.tier))
        return joined

    def prefix_came(self, request: SimRequest, tokens: int, now_us: float) -> None:
        """So much of its prompt, that it waited for, has been read from a peer."""
        self._engine.settle(now_us)
        self._engine.room.prefix_came(request, tokens)
        self._engine.queue(request, now_us)
