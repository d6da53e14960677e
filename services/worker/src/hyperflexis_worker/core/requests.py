"""All requests on this worker: who waits for which half, who runs, who is kept for replay, who is an orphan."""

from __future__ import annotations

from collections.abc import Callable

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.admission import fault_of, sequence_of
from hyperflexis_worker.core.effects import AddSequence, DropSequence, Effect, RevokeSequence
from hyperflexis_worker.core.engine_event import EndedAttempt, EngineEvent, NewTokens
from hyperflexis_worker.core.engine_view import EngineView
from hyperflexis_worker.core.feed import Feed
from hyperflexis_worker.core.halves import Halves
from hyperflexis_worker.core.profile import WorkerProfile
from hyperflexis_worker.core.reporting import Reporter
from hyperflexis_worker.core.request import Request
from hyperflexis_worker.core.retained import Retained
from hyperflexis_worker.core.streams import Gone, Streams
from hyperflexis_worker.core.tombstones import EVERY_ATTEMPT, Tombstones

Update = worker_session_pb2.RequestUpdate


class Requests:
    def __init__(
        self, profile: WorkerProfile, reporter: Reporter, feeds: dict[int, Feed], effects: list[Effect]
    ) -> None:
        self._profile = profile
        self._reporter = reporter
        self._effects = effects
        self._requests: dict[str, Request] = {}
        self._halves = Halves()
        self._retained = Retained()
        self._streams = Streams(feeds, effects)
        self.tombstones = Tombstones()
        self._engine = EngineView(profile.total_blocks, profile.block_tokens, profile.block_bytes)
        self.on_drop: Callable[[Request], None] = lambda request: None
        """Told of each that is forgotten here, whatever was to become of its cache."""
        self.pull: Callable[[Request, int], bool] = lambda request, now_us: False
        """Asked of each that is complete: True where a peer's cache is read for it first, and then `add` is called."""

    # --- commands ----------------------------------------------------------------------------------------

    def run(self, run: worker_session_pb2.Run, draining: bool, arrival_us: int, now_us: int) -> None:
        """`arrival_us`: when the full request was received, on this worker's clock."""
        attempt = Attempt.of(run.attempt)
        if self.tombstones.forbids(run.request_id, attempt, now_us):
            self._reporter.update(run.request_id, attempt, Update.KIND_CANCELLED)
        elif draining:
            self._reporter.reject(run.request_id, attempt, "draining")
        elif run.prompt_tokens + run.max_tokens > self._profile.capabilities.context_length:
            self._reporter.reject(run.request_id, attempt, "over_context")
        elif (request := self.admit(run.request_id, attempt, now_us)) is not None and request.run is None:
            request.run = run
            request.run_arrival_us = arrival_us
            if self._engine.up:
                self._queue_if_complete(request, now_us)
            else:
                self.lose(request, "the engine is starting again", now_us)

    def cancel(self, request_id: str, attempt: Attempt, now_us: int) -> None:
        self.tombstones.add(request_id, attempt, now_us)
        request = self._requests.get(request_id)
        if request is not None and request.attempt <= attempt:
            self.drop(request, Gone.REASON_DROPPED, "cancelled")
        self._reporter.update(request_id, attempt, Update.KIND_CANCELLED)

    def revoke(self, request_id: str, attempt: Attempt, now_us: int) -> None:
        request = self._requests.get(request_id)
        if request is None or request.attempt != attempt:
            # Not here in any form: gone without trace, and it must not start if its Run is still coming.
            self.tombstones.add(request_id, attempt, now_us)
            self._reporter.update(request_id, attempt, Update.KIND_REVOKED)
        elif not request.complete or request.pulling:
            self.drop(request, Gone.REASON_DROPPED, "revoked")
            self.tombstones.add(request_id, attempt, now_us)
            self._reporter.update(request_id, attempt, Update.KIND_REVOKED)
        elif request.phase == worker_session_pb2.REQUEST_PHASE_WAITING:
            self._effects.append(RevokeSequence(request_id, attempt))
        else:
            self._reporter.update(request_id, attempt, Update.KIND_NOT_REVOKED, request.count)

    # --- feeds -------------------------------------------------------------------------------------------

    def start(self, feed: int, start: token_feed_pb2.Start, now_us: int) -> None:
        attempt = Attempt.of(start.attempt)
        if self.tombstones.forbids(start.request_id, attempt, now_us):
            return self._streams.gone(feed, start.request_id, attempt, Gone.REASON_DROPPED, "ended here earlier")
        fault = fault_of(start, self._profile.capabilities)
        if fault:
            self._reporter.reject(start.request_id, attempt, "invalid_start")
            return self._streams.gone(feed, start.request_id, attempt, Gone.REASON_INVALID, fault)
        request = self.admit(start.request_id, attempt, now_us)
        if request is None:
            message = "a later attempt is here"
            return self._streams.gone(feed, start.request_id, attempt, Gone.REASON_SUPERSEDED, message)
        if request.start is not None:
            return self._streams.own(request, feed, packing.count(start.committed))
        if request.phase == worker_session_pb2.REQUEST_PHASE_ATTACHING:
            return self._streams.gone(feed, start.request_id, attempt, Gone.REASON_UNKNOWN, "its cache is on its way")
        request.begin(start)
        self._streams.own(request, feed, request.count)
        self._queue_if_complete(request, now_us)

    def subscribe(self, feed: int, subscribe: token_feed_pb2.Subscribe) -> None:
        self._streams.subscribe(feed, subscribe, self._requests.get(subscribe.request_id))

    def closed(self, feed: int, request_id: str, now_us: int) -> None:
        request = self._requests.get(request_id)
        if request is None:
            return self.tombstones.add(request_id, EVERY_ATTEMPT, now_us)
        if request.owner is not None and request.owner != feed:
            return  # another router owns it now; the older owner's word no longer counts
        # Of a request that is here only this attempt is over: its client may come back, to another router, for
        # tokens that nobody has any more, and they are then made again under a later attempt.
        self.tombstones.add(request_id, request.attempt, now_us)
        self.drop(request)
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
            if (request := self.live(request_id, attempt)) is not None:
                request.phase = worker_session_pb2.REQUEST_PHASE_PREFILL
                request.started_us = now_us
                self._reporter.update(request_id, attempt, Update.KIND_STARTED, at_us=now_us)
        for request_id, attempt, tokens in event.preempted:
            request = self.live(request_id, attempt)
            if request is not None and (told := request.preempted(tokens)) is not None:
                self._reporter.update(request_id, attempt, Update.KIND_PREEMPTED, request.count, told, now_us)
        for new in event.tokens:
            if (request := self.live(new.request_id, new.attempt)) is not None:
                self._take_tokens(request, new, now_us)
        for ended in event.ended:
            if (request := self.live(ended.request_id, ended.attempt)) is not None:
                self._finish(request, ended, now_us)
        for request_id, attempt, decision in event.given_up:
            if (request := self.live(request_id, attempt)) is not None:
                # Its router hears of it from the scheduler, which may place it elsewhere, refuse it or downgrade it.
                # Told by us it would submit it again as failed, and be quicker than the report that says why.
                self.drop(request, engine=False)
                self._reporter.update(request_id, attempt, Update.KIND_GAVE_UP, request.count, decision, now_us)

    def take_over(self, request: Request, start: token_feed_pb2.Start, computed: int, now_us: int) -> int:
        """One that came with its cache decodes on. Its router, told by the scheduler, will ask for its tokens. Returns
        the number of the add."""
        request.take_over(start, now_us)
        self._streams.orphan(request, now_us)
        request.add_number = self._engine.add(request.prompt_tokens + request.count - computed, now_us)
        return request.add_number

    def revoked(self, request_id: str, attempt: Attempt, dropped: bool, now_us: int) -> None:
        kind = Update.KIND_NOT_REVOKED
        if dropped:
            kind = Update.KIND_REVOKED
            self.tombstones.add(request_id, attempt, now_us)
            if (request := self.live(request_id, attempt)) is not None:
                self.drop(request, Gone.REASON_DROPPED, "revoked", engine=False)
        self._reporter.update(request_id, attempt, kind)

    def engine_lost(self, reason: str, now_us: int) -> None:
        """What the engine had is lost, and so is every Run that comes before the next engine serves. Waiting for that
        engine here would serve nobody: weights may take minutes, while the scheduler has another worker at once,
        or holds the request until one is ready, in its order and within its limit."""
        self._engine.lost()
        for request in [r for r in self._requests.values() if r.finished is None and r.run is not None]:
            self.lose(request, reason, now_us)

    def engine_ready(self, now_us: int) -> None:
        self._engine.ready(now_us)

    @property
    def engine_up(self) -> bool:
        return self._engine.up

    # --- time and views ----------------------------------------------------------------------------------

    def tick(self, now_us: int) -> None:
        for request in self._halves.expired(now_us):
            missing = "start" if request.start is None else "run"
            self.drop(request, Gone.REASON_DROPPED, f"no {missing} came")
            self._reporter.not_started(request.request_id, request.attempt, missing)
        for request in self._streams.expired(now_us):
            self.drop(request)
            self.tombstones.add(request.request_id, request.attempt, now_us)
            self._reporter.update(request.request_id, request.attempt, Update.KIND_CANCELLED, request.count)
        for request in self._retained.expired(now_us):
            self.drop(request)
        self.tombstones.expire(now_us)

    @property
    def unfinished(self) -> int:
        """Requests that still have something to do here."""
        return sum(1 for request in self._requests.values() if request.finished is None)

    def statuses(self) -> list[worker_session_pb2.RequestStatus]:
        return [request.status() for request in self._requests.values()]

    def load(self, now_us: int) -> worker_session_pb2.WorkerLoad:
        """A Run without its Start is work to come; an engine that makes no step for its sake does not hang."""
        load = self._engine.load(now_us)
        load.queued_prefill_tokens += self._halves.prompt_tokens
        load.retained_finished = len(self._retained)
        return load

    # --- inside ------------------------------------------------------------------------------------------

    def admit(self, request_id: str, attempt: Attempt, now_us: int) -> Request | None:
        """The request at this attempt, made if need be, in halves at first; None where a later one is here."""
        request = self._requests.get(request_id)
        if request is not None and request.attempt > attempt:
            return None
        if request is None or request.attempt < attempt:
            if request is not None:
                self.drop(request, Gone.REASON_SUPERSEDED, "a later attempt came")
            request = Request(request_id, attempt, now_us)
            self._requests[request_id] = request
            self._halves.add(request)
        return request

    def whole(self, request: Request) -> None:
        """It waits for no other half."""
        self._halves.forget(request.request_id)

    def _queue_if_complete(self, request: Request, now_us: int) -> None:
        run, start = request.run, request.start
        if run is None or start is None:
            return
        assert request in self._halves
        self.whole(request)
        request.phase = worker_session_pb2.REQUEST_PHASE_WAITING
        request.queued_us = now_us
        if request.count >= start.max_tokens:
            ended = EndedAttempt(request.request_id, request.attempt, sampling_pb2.FINISH_REASON_LENGTH)
            return self._finish(request, ended, now_us)
        if not self.pull(request, now_us):
            self.add(request, now_us)

    def add(self, request: Request, now_us: int) -> None:
        """To the engine, which has all of its prompt that could be had without computing it."""
        run, start = request.run, request.start
        assert run is not None and start is not None
        request.add_number = self._engine.add(request.prompt_tokens + request.count, now_us)
        sequence = sequence_of(run, start, self._profile.eos_token_ids, request.run_arrival_us)
        self._effects.append(AddSequence(request.add_number, sequence))

    def _take_tokens(self, request: Request, new: NewTokens, now_us: int) -> None:
        request.take(new)
        if request.phase != worker_session_pb2.REQUEST_PHASE_DECODE:
            request.phase = worker_session_pb2.REQUEST_PHASE_DECODE
            request.first_token_us = now_us
            kind = Update.KIND_FIRST_TOKEN
            self._reporter.update(request.request_id, request.attempt, kind, request.count, at_us=now_us)
        self._streams.tokens(request, new.start_index)

    def _finish(self, request: Request, ended: EndedAttempt, now_us: int) -> None:
        request.finish(ended, now_us)
        self._retained.add(request)
        told = request.end_told(ended.cached_tokens)
        self._reporter.update(request.request_id, request.attempt, Update.KIND_FINISHED, request.count, told, now_us)
        self._streams.finished(request)

    def drop(
        self, request: Request, gone: Gone.Reason.ValueType | None = None, message: str = "", engine: bool = True
    ) -> None:
        """Forgets a request; with `gone`, tells the feed that waits for it."""
        if engine and request.live:
            self._engine.drop(request.add_number)
            self._effects.append(DropSequence(request.request_id, request.attempt))
        self._requests.pop(request.request_id, None)
        self.whole(request)
        self._retained.forget(request.request_id)
        self._streams.forget(request, gone, message)
        self.on_drop(request)

    def lose(self, request: Request, reason: str, now_us: int) -> None:
        """It cannot go on here; whoever wants it submits it again."""
        self.drop(request, Gone.REASON_DROPPED, f"engine lost: {reason}", engine=False)
        # Its other half may still come: that is answered at once, not after the wait for this half.
        self.tombstones.add(request.request_id, request.attempt, now_us)
        self._reporter.update(request.request_id, request.attempt, Update.KIND_LOST, request.count)

    def live(self, request_id: str, attempt: Attempt) -> Request | None:
        """It, where the engine has it under this attempt."""
        request = self._requests.get(request_id)
        return request if request is not None and request.attempt == attempt and request.live else None
