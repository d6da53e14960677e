"""QoServe's engine scheduler (ASPLOS'26, first called Niyama), as a baseline: chunks as large as the decodes' slack
allows, short and urgent prompts first, and those that cannot be in time behind all others.

After the code that its authors published (microsoft/sarathi-serve, branch niyama_asplos2026, Apache-2.0), with our
step-time model for its fitted one and each request's own TPOT for its one TBT. Nobody is refused.

That code counts the TBT deadlines of a request from the later of its first token and its TTFT, and allows one TBT more
than there are tokens: token k+1 is due at arrival + max(prefill_end, ttft) + tbt (k+1) with k tokens made, the first
one included. A request that is served early is then held to no TPOT for as long as it was early; `anchor="literal"` is
that. `anchor="first_token"` counts from the token really made, as a mean TPOT does: it is the stronger baseline where
one is promised.
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import numpy as np

from hyperflexis_common.step_time import StepShape, StepTimeModel
from hyperflexis_worker.steps.prefill_queue import Floats, PrefillQueue
from hyperflexis_worker.steps.step_policy import Chosen, Decodes, Room, StepChoice

CHUNKS = (128, *range(256, 2049, 256), 2552)
"""Tokens of a step, its decodes included, that are tried; the smallest is used whatever the slack."""
SCARCE_CHUNKS = (128, 256, 384, 512)
SCARCE_TOKENS = 32 * 1000
"""With less KV room than this, the scarce chunks are tried instead."""
CAUTION = 1.2
"""A predicted step counts as so many times longer."""
DEADLINE_PER_TOKEN_US = 8_000.0
"""A token still to prefill puts a request behind as much as so much deadline (hybrid prioritisation)."""
THROUGHPUT_MEMORY = 0.995
"""Of the mean prefill throughput, kept at each step that prefills."""


@runtime_checkable
class CountedRoom(Protocol):
    """A pool that says how much room it has."""

    @property
    def free_tokens(self) -> float: ...


class QoServePolicy:
    """`max_sequences` is the engine's own limit."""

    def __init__(
        self, model: StepTimeModel, max_sequences: int, anchor: Literal["literal", "first_token"] = "first_token"
    ) -> None:
        if anchor not in ("literal", "first_token"):
            raise ValueError(f"unknown anchor {anchor!r}; known: first_token, literal")
        if max_sequences < 1:
            raise ValueError("max_sequences must be at least 1")
        self.model = model
        self._max_sequences = max_sequences
        self._literal = anchor == "literal"
        self._relegated: set[int] = set()
        """Numbers of those put behind all others: once, and for good."""
        typical = SCARCE_CHUNKS[-1]
        self.throughput = typical / model.predict_us(StepShape(((typical, 0),)))
        """Prefill tokens a microsecond; the original starts from a figure of its GPU, this one from the model's."""

    def choose(self, now_us: float, decodes: Decodes, queue: PrefillQueue, room: Room) -> StepChoice:
        choice = StepChoice()
        if not len(queue):
            return choice
        if len(self._relegated) > 2 * len(queue) + 64:
            self._relegated.intersection_update(request.number for request in queue.requests)
        key = queue.due_us + DEADLINE_PER_TOKEN_US * queue.to_compute
        if self._relegated:
            known = (request.number in self._relegated for request in queue.requests)
            key += BEHIND * np.fromiter(known, dtype=np.float64, count=len(queue))
        head = int(key.argmin())
        budget = self._chunk_tokens(now_us, decodes, float(queue.computed[head]), room)
        if budget < 1 and not decodes.count:
            budget = CHUNKS[0]
        self._fill(now_us, key, budget, decodes, queue, room, choice)
        return choice

    def stepped(
        self, choice: StepChoice, decodes: Decodes, waiting_left: bool, predicted_us: float, took_us: float
    ) -> None:
        if choice.chunks and took_us > 0:
            seen = sum(chunk.tokens for chunk in choice.chunks) / took_us
            self.throughput += (1 - THROUGHPUT_MEMORY) * (seen - self.throughput)

    def learn_output(self, tier: str, tokens: int) -> None:
        """Learns nothing."""

    def turns_us(self, queue: PrefillQueue) -> None:
        """Serves in another order."""

    def slack_us(self, now_us: float, decodes: Decodes) -> float:
        """How long the step may take: until the first token of any decode is due."""
        if not decodes.count:
            return np.inf
        due_us: Floats = decodes.due_us
        if self._literal:
            if decodes.token_due_us is None:
                raise ValueError("the literal anchor needs token_due_us of the decodes")
            # due_us and token_due_us have as many TPOTs as tokens were made; the formula has one more.
            due_us = np.maximum(due_us, decodes.token_due_us) + decodes.tpot_us
        return float(due_us.min()) - now_us

    def _chunk_tokens(self, now_us: float, decodes: Decodes, context: float, room: Room) -> int:
        """Prefill tokens: the largest step tried that, of one prompt with the head's context, is within the slack."""
        scarce = isinstance(room, CountedRoom) and room.free_tokens < SCARCE_TOKENS
        sizes = SCARCE_CHUNKS if scarce else CHUNKS
        slack_us = self.slack_us(now_us, decodes)
        model, count = self.model, decodes.count
        fixed_us = model.predict_us(StepShape((), count, round(decodes.context_tokens)))
        if not count:
            fixed_us = model.c0_us + model.host_us
        best: int = max(sizes[0] - count, 0)
        for size in sizes[1:]:
            tokens = max(size - count, 0)
            if CAUTION * (fixed_us + model.chunk_us(count, tokens, int(context))) > slack_us:
                break
            best = tokens
        return best

    def _fill(
        self,
        now_us: float,
        key: Floats,
        budget: int,
        decodes: Decodes,
        queue: PrefillQueue,
        room: Room,
        choice: StepChoice,
    ) -> None:
        begun = queue.computed > 0
        free = self._max_sequences - decodes.count - int(np.count_nonzero(begun))
        while budget > 0:
            at = int(key.argmin())
            if key[at] == np.inf:
                return
            request = queue.requests[at]
            if not begun[at] and key[at] < BEHIND and now_us + request.to_compute / self.throughput > request.due_us:
                self._relegated.add(request.number)
                key[at] += BEHIND
                continue
            key[at] = np.inf
            offer = room.offer(request) if begun[at] or free > 0 else None
            if offer is None:
                if not begun[at]:
                    key[~begun] = np.inf  # nobody new overtakes it; those begun go on
                continue
            chunk = min(offer.tokens, budget)
            room.take(request)
            choice.chunks.append(Chosen(request, chunk))
            budget -= chunk
            free -= not begun[at]


BEHIND = 1e15
"""Added to the key of those relegated."""
