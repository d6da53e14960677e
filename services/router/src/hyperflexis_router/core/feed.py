"""One TokenFeed: which slot stands for which attempt, and StepTokens taken apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import Attempt, WorkerKey
from hyperflexis_common.tokens import TOKEN_BYTES, unpack
from hyperflexis_router.core.effects import Effect, ToFeed
from hyperflexis_router.core.logprobs import Logprobs, logprobs_of

if TYPE_CHECKING:
    from hyperflexis_router.core.request import Request

SLOTS_PER_REQUEST = 8
UNSENT_LIMIT = 16_384


class Bound(NamedTuple):
    """What a slot stands for."""

    request: Request
    attempt: Attempt


class Entry(NamedTuple):
    """Tokens of one request out of one engine step."""

    bound: Bound
    start_index: int
    packed: bytes
    crc: int
    logprobs: Logprobs = ()


class Feed:
    """The router's end of one feed. Survives reconnections; slots do not."""

    def __init__(self, worker: WorkerKey) -> None:
        self.worker = worker
        self.address = ""
        self.open = False
        self.unlisted_since_us: int | None = None
        self.users: dict[str, Request] = {}
        """Requests with an attempt that may still deliver here."""
        self._slots: dict[int, Bound] = {}
        self._slots_of: dict[str, list[int]] = {}
        # Closed for requests that ended while the feed was down; told when it is back.
        self._unsent_closed: dict[str, None] = {}

    def send(self, message: token_feed_pb2.TokenFeedRequest, out: list[Effect]) -> None:
        if self.open:
            out.append(ToFeed(self.worker, message))

    def send_closed(self, request_id: str, out: list[Effect]) -> None:
        if not self.open:
            if len(self._unsent_closed) < UNSENT_LIMIT:
                self._unsent_closed[request_id] = None
            return
        closed = token_feed_pb2.Closed(request_ids=[request_id])
        self.send(token_feed_pb2.TokenFeedRequest(closed=closed), out)

    def opened(self, out: list[Effect]) -> None:
        self.open = True
        self._forget_slots()
        if self._unsent_closed:
            closed = token_feed_pb2.Closed(request_ids=list(self._unsent_closed))
            self._unsent_closed.clear()
            self.send(token_feed_pb2.TokenFeedRequest(closed=closed), out)

    def closed(self) -> None:
        self.open = False
        self._forget_slots()

    def bind(self, slot: int, request: Request, attempt: Attempt) -> None:
        """A slot keeps its meaning until its request ends; replays may bind the attempt to another one."""
        slots = self._slots_of.setdefault(request.request_id, [])
        slots.append(slot)
        self._slots[slot] = Bound(request, attempt)
        if len(slots) > SLOTS_PER_REQUEST:
            del self._slots[slots.pop(0)]

    def leave(self, request_id: str) -> None:
        """The request listens here no more: its slots mean nothing from here on."""
        self.users.pop(request_id, None)
        for slot in self._slots_of.pop(request_id, ()):
            self._slots.pop(slot, None)

    def bound(self, slot: int) -> Bound | None:
        return self._slots.get(slot)

    def entries(self, step: token_feed_pb2.StepTokens) -> Iterator[Entry]:
        """The step's entries for requests still here. Raises ValueError where its columns disagree."""
        slots, starts, counts, crcs = (
            unpack(step.slots),
            unpack(step.start_index),
            unpack(step.counts),
            unpack(step.crc),
        )
        tokens = step.tokens
        if not len(slots) == len(starts) == len(counts) == len(crcs) or sum(counts) * TOKEN_BYTES != len(tokens):
            raise ValueError(f"step {step.step}: columns of different lengths")
        told = {entry.entry: logprobs_of(entry, counts) for entry in step.logprobs}
        offset = 0
        lookup = self._slots.get
        for index, (slot, start, tally, crc) in enumerate(zip(slots, starts, counts, crcs, strict=True)):
            end = offset + tally * TOKEN_BYTES
            bound = lookup(slot)
            if bound is not None:
                yield Entry(bound, start, tokens[offset:end], crc, told.get(index, ()))
            offset = end

    def _forget_slots(self) -> None:
        self._slots.clear()
        self._slots_of.clear()
