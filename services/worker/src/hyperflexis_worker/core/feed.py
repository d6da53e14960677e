"""One router's feed on this worker: slots, and the step being put together for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_worker.core.request import Request
from hyperflexis_worker.steps.sampled import TokenLogprobs


@dataclass(slots=True)
class _Columns:
    slots: list[int] = field(default_factory=list)
    start_index: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    crc: list[int] = field(default_factory=list)
    tokens: bytearray = field(default_factory=bytearray)
    finished: list[token_feed_pb2.AttemptFinished] = field(default_factory=list)
    logprobs: list[token_feed_pb2.EntryLogprobs] = field(default_factory=list)


class Feed:
    """Collects what one step made for one router; `flush` gives the messages in order."""

    def __init__(self, feed: int, router_id: str) -> None:
        self.feed = feed
        self.router_id = router_id
        self._next_slot = 1
        self._slots: dict[str, tuple[Request, int]] = {}
        self._binds: list[token_feed_pb2.Bind] = []
        self._columns = _Columns()

    def forget(self, request: Request) -> None:
        bound = self._slots.get(request.request_id)
        if bound is not None and bound[0] is request:
            del self._slots[request.request_id]

    def add(self, request: Request, start_index: int) -> None:
        """Tokens [start_index, count) of a request go out with the next flush."""
        count = request.count - start_index
        if count < 1:
            return
        columns = self._columns
        logprobs = request.logprobs_from(start_index)
        if logprobs:
            columns.logprobs.append(_entry_logprobs(len(columns.slots), logprobs))
        columns.slots.append(self._slot(request))
        columns.start_index.append(start_index)
        columns.counts.append(count)
        columns.crc.append(request.crc)
        columns.tokens += request.tokens[4 * start_index :]

    def add_finished(self, request: Request) -> None:
        assert request.finished is not None
        finished = token_feed_pb2.AttemptFinished()
        finished.CopyFrom(request.finished)
        finished.slot = self._slot(request)
        self._columns.finished.append(finished)

    def flush(self, step: int) -> Iterator[token_feed_pb2.TokenFeedResponse]:
        for bind in self._binds:
            yield token_feed_pb2.TokenFeedResponse(bind=bind)
        self._binds = []
        columns = self._columns
        if columns.slots or columns.finished:
            self._columns = _Columns()
            yield token_feed_pb2.TokenFeedResponse(
                step=token_feed_pb2.StepTokens(
                    step=step,
                    slots=packing.pack(columns.slots),
                    start_index=packing.pack(columns.start_index),
                    counts=packing.pack(columns.counts),
                    crc=packing.pack(columns.crc),
                    tokens=bytes(columns.tokens),
                    finished=columns.finished,
                    logprobs=columns.logprobs,
                )
            )

    def _slot(self, request: Request) -> int:
        bound = self._slots.get(request.request_id)
        if bound is not None and bound[0] is request:
            return bound[1]
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        self._slots[request.request_id] = (request, slot)
        self._binds.append(
            token_feed_pb2.Bind(slot=slot, request_id=request.request_id, attempt=request.attempt.proto())
        )
        return slot


def _entry_logprobs(entry: int, logprobs: list[TokenLogprobs | None]) -> token_feed_pb2.EntryLogprobs:
    width = max((len(one.top) for one in logprobs if one is not None), default=0)
    nothing = TokenLogprobs(math.nan)
    known = [one or nothing for one in logprobs]
    padded = [(*one.top, *(((0, math.nan),) * (width - len(one.top)))) for one in known]
    return token_feed_pb2.EntryLogprobs(
        entry=entry,
        chosen=packing.pack_floats(one.chosen for one in known),
        width=width,
        top_ids=packing.pack(token for row in padded for token, _ in row),
        top=packing.pack_floats(logprob for row in padded for _, logprob in row),
    )
