"""One request: who owns which index of its output, what the scheduler owes it, and when to ask again."""

from __future__ import annotations

from typing import NamedTuple

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import NO_ATTEMPT, Attempt
from hyperflexis_common.tokens import TOKEN_BYTES, extend_crc
from hyperflexis_router.core import endings, messages
from hyperflexis_router.core.effects import Committed, Effect, Ended, Noticed
from hyperflexis_router.core.feed import Entry, Feed
from hyperflexis_router.core.logprobs import Logprobs
from hyperflexis_router.core.output import Output
from hyperflexis_router.core.session import SchedulerSession
from hyperflexis_router.core.submission import NewRequest, ResumedRequest
from hyperflexis_router.core.timing import RouterTiming


class Older(NamedTuple):
    """The attempt before the current one, while it still owns [next_index, current's first index)."""

    attempt: Attempt
    feed: Feed


class Request:
    """Every method appends what it wants done to `out`. After Ended it must not be called again."""

    def __init__(self, new: NewRequest, hashes: bytes, session: SchedulerSession, timing: RouterTiming) -> None:
        self.new = new
        self.request_id = new.request_id
        self.output = Output(new.committed if isinstance(new, ResumedRequest) else b"", timing.ahead_tokens)
        self.ended = False
        self.may_run_on = False
        """It ended here: its worker and the scheduler must be told to stop."""
        self.attempt = NO_ATTEMPT
        self.attempts = 0
        self.feed: Feed | None = None
        """Where the current attempt delivers; None while there is none, or it is dead."""
        self._older: Older | None = None
        self._owned_from = 0
        self._failed = False
        self._answered = False
        self._finish: token_feed_pb2.AttemptFinished | None = None
        self._asked_index = -1
        self._quiet_since_us = self._progress_us = self._placeless_since_us = new.received_us
        self._submitted = isinstance(new, ResumedRequest)
        self._answer_due_us = 0
        self._queued_told = False
        self._hashes = hashes
        self._session = session
        self._timing = timing

    # --- the scheduler ---

    def submit(self, now_us: int, out: list[Effect]) -> None:
        """Asks for a place, or for another one; without a session, the next one will bring it."""
        if not self._session.open:
            return
        last = self.attempt if self.attempt != NO_ATTEMPT else None
        message = messages.submit(
            self.new, self._hashes, self.output.next_index, self._submitted, last, self._failed, now_us
        )
        self._submitted = True
        self._answer_due_us = now_us + self._timing.submit_repeat_us
        self._session.send(message, out)

    def placed(
        self, attempt: Attempt, base_index: int, started: bool, feed: Feed, now_us: int, out: list[Effect]
    ) -> None:
        """A grant, new or repeated."""
        self._answer_due_us = 0
        if attempt < self.attempt:
            return
        if attempt == self.attempt:
            if self.feed is None:
                # The scheduler believes in an attempt that is dead here: it must grant another.
                self._failed = True
                self.submit(now_us, out)
            elif not self._answered and not started:
                self._start(now_us, out)
            return
        next_index = self.output.next_index
        if self.feed is not None and base_index > next_index:
            self._older = Older(self.attempt, self.feed)
            self._owned_from = base_index
        else:
            if self.feed is not None:
                self.feed.leave(self.request_id)
            self._owned_from = next_index
            self.output.forget_held()
        if self.attempt != NO_ATTEMPT:
            self._notice(inference_service_pb2.Notice.KIND_REPLACED, f"goes on at token {next_index} elsewhere", out)
        self.attempt, self.feed = attempt, feed
        self.attempts += 1
        self._failed, self._answered, self._finish, self._asked_index = False, started, None, -1
        self._quiet_since_us = self._progress_us = now_us
        feed.users[self.request_id] = self
        self.feed_opened(feed, now_us, out)

    def queued(self, now_us: int, out: list[Effect]) -> None:
        # Asked again now and then: the Placed that ends the wait may be lost like any message.
        self._answer_due_us = now_us + self._timing.queued_repeat_us
        if not self._queued_told:
            self._queued_told = True
            self._notice(inference_service_pb2.Notice.KIND_QUEUED, "waiting for a worker", out)

    def downgraded(self, message: router_session_pb2.Downgraded, out: list[Effect]) -> None:
        out.append(Noticed(self.request_id, messages.downgraded(self.new.slo, message)))

    def best_effort(self, message: router_session_pb2.BestEffort, out: list[Effect]) -> None:
        out.append(Noticed(self.request_id, messages.best_effort(message)))

    def refused(self, message: router_session_pb2.Refused, out: list[Effect]) -> None:
        self._end(endings.refused(message, self.output.next_index, self.attempts), out)

    def lost(self, attempt: Attempt, now_us: int, out: list[Effect]) -> None:
        """The scheduler says that an attempt is over: the current one, or one whose Placed never came."""
        if attempt > self.attempt or (attempt == self.attempt and self.feed is not None):
            self._abandon(now_us)
            self.submit(now_us, out)

    # --- the client ---

    def extend(self, packed: bytes, now_us: int, out: list[Effect]) -> None:
        """Tokens from next_index on that the client got through another router, which had the request meanwhile: this
        one is its owner again, and goes on after them."""
        first, output = self.output.next_index, self.output
        output.take(first, packed, extend_crc(output.crc, packed))
        out.append(Committed(self.request_id, first, packed, ()))
        if output.next_index >= self.new.max_tokens:
            self.end_here(sampling_pb2.FINISH_REASON_LENGTH, "", out)
            return
        self._quiet_since_us = self._progress_us = now_us
        if self._older and output.next_index >= self._owned_from:
            self._drop_older(now_us, out)
        self.submit(now_us, out)
        if self.feed is not None and self._answered:
            self._subscribe(now_us, out)

    # --- the feeds ---

    def feed_opened(self, feed: Feed, now_us: int, out: list[Effect]) -> None:
        """A feed that this request uses can be written to."""
        if self.feed is feed and feed.open:
            self._quiet_since_us = now_us
            if self._answered:
                self._subscribe(now_us, out)
            else:
                self._start(now_us, out)

    def feed_closed(self, feed: Feed, now_us: int, out: list[Effect]) -> None:
        if self._older and self._older.feed is feed:
            self._drop_older(now_us, out)
        if self.feed is feed:
            self._quiet_since_us = now_us

    def bound(self, attempt: Attempt) -> None:
        """The worker has this attempt's Start."""
        if attempt == self.attempt:
            self._answered = True

    def tokens(self, entry: Entry, now_us: int, out: list[Effect]) -> None:
        """Tokens [start, start + n) of an attempt, with the CRC of its whole prefix after them."""
        self._take(entry.bound.attempt, entry.start_index, entry.packed, entry.crc, entry.logprobs, now_us, out)
        while (early := self.output.next_held()) is not None:
            start = self.output.next_index
            self._take(early.attempt, start, early.packed, early.crc, early.logprobs, now_us, out)
        if self._finish is not None:
            self._try_finish(now_us, out)

    def finished(
        self, attempt: Attempt, finish: token_feed_pb2.AttemptFinished, now_us: int, out: list[Effect]
    ) -> None:
        """The worker's last word on an attempt; it counts once every token before it is here."""
        if attempt != self.attempt or self.feed is None:
            return
        if finish.reason in (sampling_pb2.FINISH_REASON_CANCELLED, sampling_pb2.FINISH_REASON_UNSPECIFIED):
            # Nobody here cancelled it, so the worker gave it up: the request goes on elsewhere.
            self.give_up(now_us, out)
            return
        self._answered = True
        self._finish = finish
        self._try_finish(now_us, out)

    def gone(self, attempt: Attempt, now_us: int, out: list[Effect]) -> None:
        """The worker cannot deliver this attempt."""
        if self._older and attempt == self._older.attempt:
            self._drop_older(now_us, out)
        elif attempt == self.attempt and self.feed is not None:
            self.give_up(now_us, out)

    # --- time, and ends that begin here ---

    def tick(self, now_us: int, out: list[Effect]) -> None:
        timing = self._timing
        if self._answer_due_us and now_us >= self._answer_due_us:
            self.submit(now_us, out)
        if self.feed is None:
            since = max(self._placeless_since_us, self._session.closed_since_us)
            if not self._session.open and now_us - since >= timing.no_scheduler_us:
                waited_us, made = timing.no_scheduler_us, self.output.next_index
                self._end(endings.no_scheduler(self.request_id, waited_us, made, self.attempts), out)
        elif not self.feed.open:
            if now_us - self._quiet_since_us >= timing.feed_down_us:
                self.give_up(now_us, out)
        elif (self.output.waiting or self._finish) and now_us - self._progress_us >= timing.stuck_us:
            self.give_up(now_us, out)
        elif now_us - self._quiet_since_us >= timing.quiet_us:
            if self._older:
                self._drop_older(now_us, out)
            self._subscribe(now_us, out)

    def session_closed(self) -> None:
        self._answer_due_us = 0

    def give_up(self, now_us: int, out: list[Effect]) -> None:
        """The current attempt cannot deliver: the scheduler must cancel it and grant another."""
        self._abandon(now_us)
        self._failed = True
        self.submit(now_us, out)

    def end_here(self, reason: sampling_pb2.FinishReason.ValueType, message: str, out: list[Effect]) -> None:
        """The router itself ends the request."""
        self.may_run_on = True
        ended = Ended(self.request_id, reason, message, output_tokens=self.output.next_index, attempts=self.attempts)
        self._end(ended, out)

    def leave_feeds(self) -> list[Feed]:
        """Stops listening; returns the feeds whose workers may hold something of this request."""
        feeds = [feed for feed in (self._older.feed if self._older else None, self.feed) if feed is not None]
        self._older = self.feed = None
        for feed in feeds:
            feed.leave(self.request_id)
        return feeds

    # --- inside ---

    def _take(
        self,
        attempt: Attempt,
        start: int,
        packed: bytes,
        crc: int,
        logprobs: Logprobs,
        now_us: int,
        out: list[Effect],
    ) -> None:
        output = self.output
        until = None
        if attempt == self.attempt and self.feed is not None:
            if self._older and start < self._owned_from:
                packed = packed[(self._owned_from - start) * TOKEN_BYTES :]
                logprobs = logprobs[self._owned_from - start :]
                start = self._owned_from
        elif self._older and attempt == self._older.attempt:
            until = self._owned_from
        else:
            return
        end = start + len(packed) // TOKEN_BYTES
        first = output.next_index
        if end <= first or (until is not None and start >= until):
            return
        if start > first:
            output.hold(attempt, start, packed, crc, logprobs)
            if self._asked_index != first:
                self._subscribe(now_us, out)
            return
        fresh = output.take(start, packed, crc, until) if end <= self.new.max_tokens else None
        if fresh is None:
            self.give_up(now_us, out)
            return
        self._quiet_since_us = self._progress_us = now_us
        out.append(Committed(self.request_id, first, fresh, logprobs[first - start : output.next_index - start]))
        if self._older and output.next_index >= self._owned_from:
            self._drop_older(now_us, out)

    def _start(self, now_us: int, out: list[Effect]) -> None:
        assert self.feed is not None
        self._quiet_since_us = now_us
        self.feed.send(messages.start(self.new, self.attempt, bytes(self.output.packed), now_us), out)

    def _subscribe(self, now_us: int, out: list[Effect]) -> None:
        """Asks the owner of next_index for it and what follows."""
        self._quiet_since_us = now_us
        self._asked_index = self.output.next_index
        owner = self._older or (Older(self.attempt, self.feed) if self.feed else None)
        if owner is not None:
            owner.feed.send(messages.subscribe(self.request_id, owner.attempt, self.output.next_index), out)

    def _try_finish(self, now_us: int, out: list[Effect]) -> None:
        finish = self._finish
        assert finish is not None
        if finish.reason == sampling_pb2.FINISH_REASON_ERROR:
            self.output.forget_held()
            self._end(endings.finished(self.request_id, finish, self.output.next_index, self.attempts), out)
            return
        if self.output.next_index < finish.output_tokens:
            if self._asked_index != self.output.next_index:
                self._subscribe(now_us, out)
            return
        if self.output.next_index > finish.output_tokens or self.output.crc != finish.crc:
            self.give_up(now_us, out)
            return
        self._end(endings.finished(self.request_id, finish, self.output.next_index, self.attempts), out)

    def _end(self, ended: Ended, out: list[Effect]) -> None:
        self.ended = True
        out.append(ended)

    def _abandon(self, now_us: int) -> None:
        """The current attempt is dead from next_index on; so is whatever an older one still owed."""
        self.leave_feeds()
        self._finish = None
        self._placeless_since_us = now_us
        self.output.forget_held()

    def _drop_older(self, now_us: int, out: list[Effect]) -> None:
        """The older attempt is done or gone: the current one owns from next_index on."""
        assert self._older is not None
        older, self._older = self._older, None
        if older.feed is not self.feed:
            older.feed.leave(self.request_id)
        if self.output.next_index < self._owned_from:
            self._owned_from = self.output.next_index
            self._subscribe(now_us, out)

    def _notice(self, kind: inference_service_pb2.Notice.Kind.ValueType, message: str, out: list[Effect]) -> None:
        out.append(Noticed(self.request_id, inference_service_pb2.Notice(kind=kind, message=message)))
