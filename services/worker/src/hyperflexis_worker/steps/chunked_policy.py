"""One token budget a step, whatever it takes: what vLLM v1 does (FCFS), Sarathi-Serve with a small budget, and EDF."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_worker.steps.prefill_queue import Floats, PrefillQueue
from hyperflexis_worker.steps.step_policy import Chosen, Decodes, Room, StepChoice

ORDERS: dict[str, Callable[[PrefillQueue], Floats]] = {
    "fcfs": lambda queue: queue.arrival_us,
    "edf": lambda queue: queue.due_us,
    "srpf": lambda queue: queue.to_compute,
}
"""By arrival; by deadline; shortest remaining prefill first."""


class ChunkedPolicy:
    """All decodes, then those begun, then those waiting in order, until the budget is used or one finds no room."""

    def __init__(self, model: StepTimeModel, max_tokens: int, max_sequences: int, order: str = "fcfs") -> None:
        if order not in ORDERS:
            raise ValueError(f"unknown order {order!r}; known: {', '.join(sorted(ORDERS))}")
        if max_tokens < 1 or max_sequences < 1:
            raise ValueError("max_tokens and max_sequences must be at least 1")
        self.model = model
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences
        self._order = ORDERS[order]

    def choose(self, now_us: float, decodes: Decodes, queue: PrefillQueue, room: Room) -> StepChoice:
        choice = StepChoice()
        budget = self._max_tokens - decodes.count
        if not len(queue) or budget < 1:
            return choice
        begun = queue.computed > 0
        # Those begun come first, in the same order among themselves.
        key = np.where(begun, self._order(queue) - _FIRST, self._order(queue))
        free = self._max_sequences - decodes.count - int(np.count_nonzero(begun))
        while budget > 0:
            at = int(key.argmin())
            if key[at] == np.inf or (not begun[at] and free < 1):
                break
            key[at] = np.inf
            request = queue.requests[at]
            offer = room.offer(request)
            if offer is None:
                if begun[at]:
                    continue
                break  # no room: nobody overtakes it
            chunk = min(offer.tokens, budget)
            room.take(request)
            choice.chunks.append(Chosen(request, chunk))
            budget -= chunk
            free -= not begun[at]
        return choice

    def stepped(
        self, choice: StepChoice, decodes: Decodes, waiting_left: bool, predicted_us: float, took_us: float
    ) -> None:
        """Learns nothing."""

    def turns_us(self, queue: PrefillQueue) -> None:
        """Serves in another order."""

    def learn_output(self, tier: str, tokens: int) -> None:
        """Learns nothing."""


_FIRST = 1e16
"""Taken from the key of those begun."""
