"""All requests on this worker: who waits for which half, who runs, who is kept for replay, who is an orphan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.admission import fault_of, sequence_of
from hyperflexis_worker.core.effects import AddSequence, DropSequence, Effect, RevokeSequence
from hyperflexis_worker.core.engine_event import EndedAttempt, EngineEvent, NewTokens
from hyperflexis_worker.core.engine_view import EngineView
from hyperflexis_worker.core.feed import Feed
from hyperflexis_worker.core.reporting import Reporter
from hyperflexis_worker.core.request import Request
from hyperflexis_worker.core.streams import Gone, Streams
from hyperflexis_worker.core.tombstones import EVERY_ATTEMPT, Tombstones

if TYPE_CHECKING:
    from hyperflexis_worker.core.worker import WorkerProfile

HALF_LIMIT_US = 1_000_000
"""A Run without Start, or a Start without Run, is dropped after this."""
RETAIN_US = 120_000_000
"""Tokens of a finished request are kept this long for replay, unless Closed comes first."""
RETAIN_LIMIT = 20_000
"""Finished requests kept at most; beyond it the oldest go."""

Update = worker_session_pb2.RequestUpdate


class Requests:
    def __init__(
        self, profile: WorkerProfile, reporter: Reporter, feeds: dict[int, Feed], effects: list[Effect]
    ) -> None:
        self._profile = profile
        self._reporter = reporter
        self._effects = effects
        self._requests: dict[str, Request] = {}
        self._halves: dict[str, Request] = {}
        self._finished: dict[str, Request] = {}
        self._streams = Streams(feeds, effects)
        self._tombstones = Tombstones()
        self._engine = EngineView(profile.total_blocks, profile.block_tokens)

    # --- commands ----------------------------------------------------------------------------------------

    def run(self, run: worker_session_pb2.Run, draining: bool, arrival_us: int, now_us: int) -> None:
        """`arrival_us`: when the full request was received, on this worker's clock."""
        attempt = Attempt.of(run.attempt)
        if self._tombstones.forbids(run.request_id, attempt, now_us):
            self._reporter.update(run.request_id, attempt, Update.KIND_CANCELLED)
        elif draining:
            self.reject(run.request_id, attempt, "draining")
        elif run.prompt_tokens + run.max_tokens > self._profile.capabilities.context_length:
            self.reject(run.request_id, attempt, "over_context")
        elif (request := self._admit(run.request_id, attempt, now_us)) is not None and request.run is None:
            request.run = run
            request.run_arrival_us = arrival_us
            if self._engine.up:
                self._queue_if_complete(request, now_us)
            else:
                self._lose(request, "the engine is starting again", now_us)

    def cancel(self, request_id: str, attempt: Attempt, now_us: int) -> None:
        self._tombstones.add(request_id, attempt, now_us)
        request = self._requests.get(request_id)
        if request is not None and request.attempt <= attempt:
            self._drop(request, Gone.REASON_DROPPED, "cancelled")
        self._reporter.update(request_id, attempt, Update.KIND_CANCELLED)

    def revoke(self, request_id: str, attempt: Attempt, now_us: int) -> None:
        request = self._requests.get(request_id)
        if request is None or request.attempt != attempt:
            # Not here in any form: gone without trace, and it must not start if its Run is still coming.
            self._tombstones.add(request_id, attempt, now_us)
            self._reporter.update(request_id, attempt, Update.KIND_REVOKED)
        elif not request.complete:
            self._drop(request, Gone.REASON_DROPPED, "revoked")
            self._tombstones.add(request_id, attempt, now_us)
            self._reporter.update(request_id, attempt, Update.KIND_REVOKED)
        elif request.phase == worker_session_pb2.REQUEST_PHASE_WAITING:
            self._effects.append(RevokeSequence(request_id, attempt))
        else:
            self._reporter.update(request_id, attempt, Update.KIND_NOT_REVOKED, request.count)

    def reject(self, request_id: str, attempt: Attempt, reason: str) -> None:
        decision = slo_pb2.Decision(kind="reject", reason=reason)
        self._reporter.update(request_id, attempt, Update.KIND_REJECTED, decision=decision)

    # --- feeds -------------------------------------------------------------------------------------------

    def start(self, feed: int, start: token_feed_pb2.Start, now_us: int) -> None:
        attempt = Attempt.of(start.attempt)
        if self._tombstones.forbids(start.request_id, attempt, now_us):
            return self._streams.gone(feed, start.request_id, attempt, Gone.REASON_DROPPED, "ended here earlier")
        fault = fault_of(start, self._profile.capabilities)
        if fault:
            self.reject(start.request_id, attempt, "invalid_start")
            return self._streams.gone(feed, start.request_id, attempt, Gone.REASON_INVALID, fault)
        request = self._admit(start.request_id, attempt, now_us)
        if request is None:
            return self._streams.gone(
                feed, start.request_id, attempt, Gone.REASON_SUPERSEDED, "a later attempt is here"
            )
        if request.start is not None:
            return self._streams.own(request, feed, packing.count(start.committed))
        request.start = start
        request.tokens = bytearray(start.committed)
        request.crc = packing.extend_crc(0, start.committed)
        self._streams.own(request, feed, request.count)
        self._queue_if_complete(request, now_us)

    def subscribe(self, feed: int, subscribe: token_feed_pb2.Subscribe, now_us: int) -> None:
        attempt = Attempt.of(subscribe.attempt)
        request = self._requests.get(subscribe.request_id)
        if request is None or request.attempt < attempt or request.start is None:
            self._streams.gone(feed, subscribe.request_id, attempt, Gone.REASON_UNKNOWN, "not here")
        elif request.attempt > attempt:
            self._streams.gone(feed, subscribe.request_id, attempt, Gone.REASON_SUPERSEDED, "a later attempt is here")
        elif subscribe.next_index > request.count:
            message = f"asked for index {subscribe.next_index} of {request.count} tokens"
            self._streams.gone(feed, subscribe.request_id, attempt, Gone.REASON_INVALID, message)
        else:
            self._streams.own(request, feed, subscribe.next_index)

    def closed(self, feed: int, request_id: str, now_us: int) -> None:
        request = self._requests.get(request_id)
        if request is not None and request.owner is not None and request.owner != feed:
            return  # another router owns it now; the older owner's word no longer counts
        if request is None:
            return self._tombstones.add(request_id, EVERY_ATTEMPT, now_us)
        # Of a request that is here only this attempt is over: its client may come back, to another router, for
        # tokens that nobody has any more, and they are then made again under a later attempt.
        self._tombstones.add(request_id, request.attempt, now_us)
        self._drop(request)
        if request.finished is None:
            self._reporter.update(request_id, request.attempt, Update.KIND_CANCELLED, request.count)

    def feed_closed(self, feed: int, now_us: int) -> None:
        for request in self._requests.values():
            if request.owner == feed:
                self._streams.orphan(request, now_us)

    # --- the engine --------------------------------------------------------------------------------------

    def stepped(self, event: EngineEvent, now_us: int) -> None:
        self._engine.stepped(event, now_us)
        for request_id, attempt in event.started:
            if (request := self._current(request_id, attempt)) is not None:
                request.phase = worker_session_pb2.REQUEST_PHASE_PREFILL
                request.started_us = now_us
                self._reporter.update(request_id, attempt, Update.KIND_STARTED, at_us=now_us)
        for request_id, attempt, tokens in event.preempted:
            request = self._current(request_id, attempt)
            if request is not None and (told := request.preempted(tokens)) is not None:
                self._reporter.update(request_id, attempt, Update.KIND_PREEMPTED, request.count, told, now_us)
        for new in event.tokens:
            if (request := self._current(new.request_id, new.attempt)) is not None:
                self._take_tokens(request, new, now_us)
        for ended in event.ended:
            if (request := self._current(ended.request_id, ended.attempt)) is not None:
                self._finish(request, ended, now_us)
        for request_id, attempt, decision in event.given_up:
            if (request := self._current(request_id, attempt)) is not None:
                # Its router hears of it from the scheduler, which may place it elsewhere, refuse it or downgrade it.
                # Told by us it would submit it again as failed, and be quicker than the report that says why.
                self._drop(request, engine=False)
                self._reporter.update(request_id, attempt, Update.KIND_GAVE_UP, request.count, decision, now_us)

    def revoked(self, request_id: str, attempt: Attempt, dropped: bool, now_us: int) -> None:
        kind = Update.KIND_NOT_REVOKED
        if dropped:
            kind = Update.KIND_REVOKED
            self._tombstones.add(request_id, attempt, now_us)
            if (request := self._current(request_id, attempt)) is not None:
                self._drop(request, Gone.REASON_DROPPED, "revoked", engine=False)
        self._reporter.update(request_id, attempt, kind)

    def engine_lost(self, reason: str, now_us: int) -> None:
        """What the engine had is lost, and so is every Run that comes before the next engine serves. Waiting for that
        engine here would serve nobody: weights may take minutes, while the scheduler has another worker at once,
        or holds the request until one is ready, in its order and within its limit."""
        self._engine.lost()
        for request in [r for r in self._requests.values() if r.finished is None and r.run is not None]:
            self._lose(request, reason, now_us)

    def engine_ready(self, now_us: int) -> None:
        self._engine.ready(now_us)

    @property
    def engine_up(self) -> bool:
        return self._engine.up

    # --- time and views ----------------------------------------------------------------------------------

    def tick(self, now_us: int) -> None:
        for request in [r for r in self._halves.values() if now_us - r.first_seen_us > HALF_LIMIT_US]:
            missing = "start" if request.start is None else "run"
            self._drop(request, Gone.REASON_DROPPED, f"no {missing} came")
            decision = slo_pb2.Decision(kind="not_started", reason=f"no_{missing}")
            self._reporter.update(request.request_id, request.attempt, Update.KIND_NOT_STARTED, decision=decision)
        for request in self._streams.expired(now_us):
            self._drop(request)
            self._tombstones.add(request.request_id, request.attempt, now_us)
            self._reporter.update(request.request_id, request.attempt, Update.KIND_CANCELLED, request.count)
        for request in list(self._finished.values()):
            if now_us - request.finished_us <= RETAIN_US and len(self._finished) <= RETAIN_LIMIT:
                break
            self._drop(request)
        self._tombstones.expire(now_us)

    @property
    def unfinished(self) -> int:
        """Requests that still have something to do here."""
        return sum(1 for request in self._requests.values() if request.finished is None)

    def statuses(self) -> list[worker_session_pb2.RequestStatus]:
        return [request.status() for request in self._requests.values()]

    def load(self, now_us: int) -> worker_session_pb2.WorkerLoad:
        """`waiting` is what the engine has: a Run whose Start has not come is work to come, but an engine that makes
        no step for its sake does not hang."""
        load = self._engine.load(now_us)
        load.queued_prefill_tokens += sum(r.prompt_tokens for r in self._halves.values() if r.run is not None)
        load.retained_finished = len(self._finished)
        return load

    # --- inside ------------------------------------------------------------------------------------------

    def _admit(self, request_id: str, attempt: Attempt, now_us: int) -> Request | None:
        """The request at this attempt, made if need be; None where a later one is here."""
        request = self._requests.get(request_id)
        if request is not None and request.attempt > attempt:
            return None
        if request is None or request.attempt < attempt:
            if request is not None:
                self._drop(request, Gone.REASON_SUPERSEDED, "a later attempt came")
            request = Request(request_id, attempt, now_us)
            self._requests[request_id] = self._halves[request_id] = request
        return request

    def _queue_if_complete(self, request: Request, now_us: int) -> None:
        run, start = request.run, request.start
        if run is None or start is None:
            return
        del self._halves[request.request_id]
        request.phase = worker_session_pb2.REQUEST_PHASE_WAITING
        request.queued_us = now_us
        if request.count >= start.max_tokens:
            ended = EndedAttempt(request.request_id, request.attempt, sampling_pb2.FINISH_REASON_LENGTH)
            return self._finish(request, ended, now_us)
        request.add_number = self._engine.add(request.prompt_tokens + request.count, now_us)
        sequence = sequence_of(run, start, self._profile.eos_token_ids, request.run_arrival_us)
        self._effects.append(AddSequence(request.add_number, sequence))

    def _take_tokens(self, request: Request, new: NewTokens, now_us: int) -> None:
        if not request.take(new):
            raise AssertionError(f"the engine sent index {new.start_index} where {request.count} was due")
        if request.phase != worker_session_pb2.REQUEST_PHASE_DECODE:
            request.phase = worker_session_pb2.REQUEST_PHASE_DECODE
            request.first_token_us = now_us
            kind = Update.KIND_FIRST_TOKEN
            self._reporter.update(request.request_id, request.attempt, kind, request.count, at_us=now_us)
        self._streams.tokens(request, new.start_index)

    def _finish(self, request: Request, ended: EndedAttempt, now_us: int) -> None:
        request.finish(ended, now_us)
        self._finished[request.request_id] = request
        told = request.end_told(ended.cached_tokens)
        self._reporter.update(request.request_id, request.attempt, Update.KIND_FINISHED, request.count, told, now_us)
        self._streams.finished(request)

    def _drop(
        self, request: Request, gone: Gone.Reason.ValueType | None = None, message: str = "", engine: bool = True
    ) -> None:
        """Forgets a request; with `gone`, tells the feed that waits for it."""
        if engine and request.live:
            self._engine.drop(request.add_number)
            self._effects.append(DropSequence(request.request_id, request.attempt))
        for index in (self._requests, self._halves, self._finished):
            index.pop(request.request_id, None)
        self._streams.forget(request, gone, message)

    def _lose(self, request: Request, reason: str, now_us: int) -> None:
        self._drop(request, Gone.REASON_DROPPED, f"engine lost: {reason}", engine=False)
        # Its other half may still come: that is answered at once, not after the wait for this half.
        self._tombstones.add(request.request_id, request.attempt, now_us)
        self._reporter.update(request.request_id, request.attempt, Update.KIND_LOST, request.count)

    def _current(self, request_id: str, attempt: Attempt) -> Request | None:
        request = self._requests.get(request_id)
        return request if request is not None and request.attempt == attempt and request.live else None
