"""One request: its place at the scheduler, its tokens from the workers, and when to ask again."""

from __future__ import annotations

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.tokens import TOKEN_BYTES, extend_crc
from hyperflexis_router.core import endings, messages
from hyperflexis_router.core.attempts import Attempts
from hyperflexis_router.core.effects import Committed, Effect, Ended, Noticed
from hyperflexis_router.core.feed import Entry, Feed
from hyperflexis_router.core.logprobs import Logprobs
from hyperflexis_router.core.output import Output
from hyperflexis_router.core.session import SchedulerSession
from hyperflexis_router.core.submission import NewRequest, ResumedRequest
from hyperflexis_router.core.timing import RouterTiming


class Request:
    """Every method appends what it wants done to `out`. After Ended it must not be called again."""

    def __init__(self, new: NewRequest, hashes: bytes, session: SchedulerSession, timing: RouterTiming) -> None:
        self.new = new
        self.request_id = new.request_id
        self.output = Output(new.committed if isinstance(new, ResumedRequest) else b"", timing.ahead_tokens)
        self.ended = False
        self.may_run_on = False
        """It ended here: its worker and the scheduler must be told to stop."""
        self.attempts = Attempts(new.request_id)
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
        last = self.attempts.current if self.attempts.count else None
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
        attempts, next_index = self.attempts, self.output.next_index
        if attempt < attempts.current:
            return
        if attempt == attempts.current:
            if attempts.feed is None:
                # The scheduler believes in an attempt that is dead here: it must grant another.
                self._failed = True
                self.submit(now_us, out)
            elif not self._answered and not started:
                self._start(now_us, out)
            return
        if not attempts.replace(attempt, feed, base_index, next_index):
            self.output.forget_held()
        if attempts.count > 1:
            self._notice(inference_service_pb2.Notice.KIND_REPLACED, f"goes on at token {next_index} elsewhere", out)
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
        self._end(endings.refused(message, self.output.next_index, self.attempts.count), out)

    def lost(self, attempt: Attempt, now_us: int, out: list[Effect]) -> None:
        """The scheduler says that an attempt is over: the current one, or one whose Placed never came."""
        if attempt > self.attempts.current or self.attempts.alive(attempt):
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
        self.attempts.reached(output.next_index)
        self.submit(now_us, out)
        if self.attempts.feed is not None and self._answered:
            self._subscribe(now_us, out)

    # --- the feeds ---

    def feed_opened(self, feed: Feed, now_us: int, out: list[Effect]) -> None:
        """A feed that this request uses can be written to."""
        if self.attempts.feed is feed and feed.open:
            self._quiet_since_us = now_us
            if self._answered:
                self._subscribe(now_us, out)
            else:
                self._start(now_us, out)

    def feed_closed(self, feed: Feed, now_us: int, out: list[Effect]) -> None:
        older = self.attempts.older
        if older is not None and older.feed is feed:
            self._drop_older(now_us, out)
        if self.attempts.feed is feed:
            self._quiet_since_us = now_us

    def bound(self, attempt: Attempt) -> None:
        """The worker has this attempt's Start."""
        if attempt == self.attempts.current:
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
        if not self.attempts.alive(attempt):
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
        older = self.attempts.older
        if older is not None and attempt == older.attempt:
            self._drop_older(now_us, out)
        elif self.attempts.alive(attempt):
            self.give_up(now_us, out)

    # --- time, and ends that begin here ---

    def tick(self, now_us: int, out: list[Effect]) -> None:
        timing, feed = self._timing, self.attempts.feed
        if self._answer_due_us and now_us >= self._answer_due_us:
            self.submit(now_us, out)
        if feed is None:
            since = max(self._placeless_since_us, self._session.closed_since_us)
            if not self._session.open and now_us - since >= timing.no_scheduler_us:
                waited_us, made = timing.no_scheduler_us, self.output.next_index
                self._end(endings.no_scheduler(self.request_id, waited_us, made, self.attempts.count), out)
        elif not feed.open:
            if now_us - self._quiet_since_us >= timing.feed_down_us:
                self.give_up(now_us, out)
        elif (self.output.waiting or self._finish) and now_us - self._progress_us >= timing.stuck_us:
            self.give_up(now_us, out)
        elif now_us - self._quiet_since_us >= timing.quiet_us:
            self.attempts.drop_older(self.output.next_index)
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
        made, attempts = self.output.next_index, self.attempts.count
        self._end(Ended(self.request_id, reason, message, output_tokens=made, attempts=attempts), out)

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
        owned = self.attempts.owned_by(attempt)
        if owned is None:
            return
        if start < owned.begin:
            packed, logprobs = packed[(owned.begin - start) * TOKEN_BYTES :], logprobs[owned.begin - start :]
            start = owned.begin
        end = start + len(packed) // TOKEN_BYTES
        first = output.next_index
        if end <= first or (owned.end is not None and start >= owned.end):
            return
        if start > first:
            output.hold(attempt, start, packed, crc, logprobs)
            if self._asked_index != first:
                self._subscribe(now_us, out)
            return
        fresh = output.take(start, packed, crc, owned.end) if end <= self.new.max_tokens else None
        if fresh is None:
            self.give_up(now_us, out)
            return
        self._quiet_since_us = self._progress_us = now_us
        out.append(Committed(self.request_id, first, fresh, logprobs[first - start : output.next_index - start]))
        self.attempts.reached(output.next_index)

    def _start(self, now_us: int, out: list[Effect]) -> None:
        attempts = self.attempts
        assert attempts.feed is not None
        self._quiet_since_us = now_us
        attempts.feed.send(messages.start(self.new, attempts.current, bytes(self.output.packed), now_us), out)

    def _subscribe(self, now_us: int, out: list[Effect]) -> None:
        """Asks the owner of next_index for it and what follows."""
        self._quiet_since_us = now_us
        self._asked_index = self.output.next_index
        owner = self.attempts.owner()
        if owner is not None:
            owner.feed.send(messages.subscribe(self.request_id, owner.attempt, self.output.next_index), out)

    def _try_finish(self, now_us: int, out: list[Effect]) -> None:
        finish = self._finish
        assert finish is not None
        if finish.reason == sampling_pb2.FINISH_REASON_ERROR:
            self.output.forget_held()
            self._end(endings.finished(self.request_id, finish, self.output.next_index, self.attempts.count), out)
            return
        if self.output.next_index < finish.output_tokens:
            if self._asked_index != self.output.next_index:
                self._subscribe(now_us, out)
            return
        if self.output.next_index > finish.output_tokens or self.output.crc != finish.crc:
            self.give_up(now_us, out)
            return
        self._end(endings.finished(self.request_id, finish, self.output.next_index, self.attempts.count), out)

    def _end(self, ended: Ended, out: list[Effect]) -> None:
        self.ended = True
        out.append(ended)

    def _abandon(self, now_us: int) -> None:
        """The current attempt is dead from next_index on; so is whatever an older one still owed."""
        self.attempts.leave()
        self._finish = None
        self._placeless_since_us = now_us
        self.output.forget_held()

    def _drop_older(self, now_us: int, out: list[Effect]) -> None:
        if self.attempts.drop_older(self.output.next_index):
            self._subscribe(now_us, out)

    def _notice(self, kind: inference_service_pb2.Notice.Kind.ValueType, message: str, out: list[Effect]) -> None:
        out.append(Noticed(self.request_id, inference_service_pb2.Notice(kind=kind, message=message)))
