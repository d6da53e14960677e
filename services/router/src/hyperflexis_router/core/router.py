"""The router's core: every request, the scheduler session and the feeds, as one state machine.

Each method takes what happened and the time, and returns what to do about it. The same class runs in the
service and in virtual networks.
"""

from __future__ import annotations

from hyperflexis.common.v1 import identity_pb2, sampling_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import Attempt, WorkerKey
from hyperflexis_common.prefix import prefix_hashes
from hyperflexis_router.core.effects import CloseFeed, Effect, OpenFeed
from hyperflexis_router.core.feed import Feed
from hyperflexis_router.core.request import Request
from hyperflexis_router.core.session import SchedulerSession
from hyperflexis_router.core.submission import NewRequest
from hyperflexis_router.core.timing import RouterTiming
from hyperflexis_router.core.workers import WorkerBook


class RouterCore:
    """docs/protocol.md, the router's part. Not thread-safe; holds only requests that have not ended."""

    def __init__(self, router_id: str, incarnation: int, timing: RouterTiming | None = None) -> None:
        self.router_id = router_id
        self.incarnation = incarnation
        self.workers = WorkerBook()
        self._timing = timing or RouterTiming()
        self._session = SchedulerSession(self._timing)
        self._requests: dict[str, Request] = {}
        self._feeds: dict[WorkerKey, Feed] = {}
        self._unconfirmed: dict[str, tuple[int, list[Feed]]] = {}

    @property
    def highest_fence(self) -> identity_pb2.Fence:
        return self._session.highest_fence

    @property
    def session_open(self) -> bool:
        return self._session.open

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def placement(self, request_id: str) -> tuple[Attempt, WorkerKey] | None:
        """Where a request runs; None while it has no living attempt."""
        request = self._requests.get(request_id)
        if request is None or request.attempts.feed is None:
            return None
        return request.attempts.current, request.attempts.feed.worker

    # --- the client's side ---

    def submit(self, request: NewRequest, now_us: int) -> list[Effect]:
        """Takes a request that nobody has submitted before or, as ResumedRequest, one with tokens committed already."""
        if request.request_id in self._requests:
            raise ValueError(f"request {request.request_id} is here already")
        out: list[Effect] = []
        hashes = prefix_hashes(request.prompt, self.workers.hash_block_tokens(request.model))
        taken = self._requests[request.request_id] = Request(request, hashes, self._session, self._timing)
        if taken.output.next_index >= request.max_tokens:
            # Taken over between the last token and the record of its end.
            taken.end_here(sampling_pb2.FINISH_REASON_LENGTH, "", out)
            self._settle(taken, out)
        else:
            taken.submit(now_us, out)
        return out

    def extend(self, request_id: str, packed: bytes, now_us: int) -> list[Effect]:
        """Takes tokens from the next index on that the client has already. Unknown or ended: nothing happens."""
        out: list[Effect] = []
        request = self._requests.get(request_id)
        if request is not None:
            request.extend(packed, now_us, out)
            if request.ended:
                self._settle(request, out)
        return out

    def cancel(self, request_id: str, now_us: int) -> list[Effect]:
        return self.finish(request_id, sampling_pb2.FINISH_REASON_CANCELLED, now_us)

    def finish(self, request_id: str, reason: sampling_pb2.FinishReason.ValueType, now_us: int) -> list[Effect]:
        """The router ends a request (a stop string, a cancellation). Unknown or ended: nothing happens."""
        out: list[Effect] = []
        request = self._requests.get(request_id)
        if request is not None:
            request.end_here(reason, "", out)
            self._settle(request, out)
        return out

    def release(self, request_id: str, now_us: int) -> list[Effect]:
        """Another router has taken the request: forgets it without a word to anybody. No Ended."""
        self._unconfirmed.pop(request_id, None)
        request = self._requests.pop(request_id, None)
        if request is not None:
            request.attempts.leave()
        return []

    def cancel_elsewhere(self, request_id: str, now_us: int) -> list[Effect]:
        """Cancels a request that another router submitted and this one has just taken over."""
        out: list[Effect] = []
        self._send_cancel(request_id, 0, out)
        return out

    def closed(self, request_id: str, now_us: int) -> list[Effect]:
        """With `confirm_close`: the record of a finished request is written, its worker may forget it."""
        out: list[Effect] = []
        unconfirmed = self._unconfirmed.pop(request_id, None)
        if unconfirmed is not None:
            self._close(request_id, *unconfirmed, out)
        return out

    # --- the scheduler's side ---

    def scheduler_opened(self, now_us: int) -> list[Effect]:
        """A session is welcomed: everything unfinished is submitted on it."""
        out: list[Effect] = []
        self._session.opened(now_us, out)
        for request in self._requests.values():
            request.submit(now_us, out)
        return out

    def scheduler_closed(self, now_us: int) -> list[Effect]:
        self._session.closed(now_us)
        for request in self._requests.values():
            request.session_closed()
        return []

    def scheduler_message(self, message: router_session_pb2.RouterSessionResponse, now_us: int) -> list[Effect]:
        out: list[Effect] = []
        if not self._session.heard(message, now_us, out):
            return out
        kind = message.WhichOneof("message")
        if kind == "ping":
            self._session.pong(message.ping, out)
        elif kind == "workers":
            self._list_workers(message.workers, now_us, out)
        elif kind in ("placed", "queued", "refused", "downgraded", "best_effort", "lost"):
            request = self._requests.get(getattr(message, kind).request_id)
            if request is not None:
                self._about_request(kind, message, request, now_us, out)
        return out

    # --- the workers' side ---

    def feed_opened(self, worker: WorkerKey, now_us: int) -> list[Effect]:
        """A feed is welcomed (again)."""
        out: list[Effect] = []
        feed = self._feeds.get(worker)
        if feed is None:
            return [CloseFeed(worker)]
        feed.opened(out)
        for request in list(feed.users.values()):
            request.feed_opened(feed, now_us, out)
        return out

    def feed_closed(self, worker: WorkerKey, now_us: int) -> list[Effect]:
        out: list[Effect] = []
        feed = self._feeds.get(worker)
        if feed is not None and feed.open:
            feed.closed()
            for request in list(feed.users.values()):
                request.feed_closed(feed, now_us, out)
        return out

    def feed_message(self, worker: WorkerKey, message: token_feed_pb2.TokenFeedResponse, now_us: int) -> list[Effect]:
        """Raises ValueError for a StepTokens that makes no sense: the shell drops the feed and dials again."""
        out: list[Effect] = []
        feed = self._feeds.get(worker)
        if feed is None:
            return out
        kind = message.WhichOneof("message")
        if kind == "step":
            self._step(feed, message.step, now_us, out)
        elif kind == "bind":
            # Of those that listen here only: a Bind may come after its attempt was given up.
            request = feed.users.get(message.bind.request_id)
            if request is not None:
                attempt = Attempt.of(message.bind.attempt)
                feed.bind(message.bind.slot, request, attempt)
                request.bound(attempt)
        elif kind == "gone":
            request = self._requests.get(message.gone.request_id)
            if request is not None:
                request.gone(Attempt.of(message.gone.attempt), now_us, out)
        return out

    def tick(self, now_us: int) -> list[Effect]:
        """Call about every 100 ms: everything that happens because time passed."""
        out: list[Effect] = []
        self._session.tick(now_us, out)
        for request in list(self._requests.values()):
            request.tick(now_us, out)
            if request.ended:
                self._settle(request, out)
        for feed in list(self._feeds.values()):
            since = feed.unlisted_since_us
            if since is not None and not feed.users and now_us - since >= self._timing.unlisted_feed_us:
                del self._feeds[feed.worker]
                out.append(CloseFeed(feed.worker))
        return out

    # --- inside ---

    def _about_request(
        self,
        kind: str,
        message: router_session_pb2.RouterSessionResponse,
        request: Request,
        now_us: int,
        out: list[Effect],
    ) -> None:
        if kind == "placed":
            placed = message.placed
            feed = self._feed(WorkerKey.of(placed.worker), placed.worker_address, now_us, out)
            request.placed(Attempt.of(placed.attempt), placed.base_index, placed.started, feed, now_us, out)
        elif kind == "queued":
            request.queued(now_us, out)
        elif kind == "downgraded":
            request.downgraded(message.downgraded, out)
        elif kind == "best_effort":
            request.best_effort(message.best_effort, out)
        elif kind == "lost":
            request.lost(Attempt.of(message.lost.attempt), now_us, out)
        else:
            request.refused(message.refused, out)
            self._settle(request, out)

    def _step(self, feed: Feed, step: token_feed_pb2.StepTokens, now_us: int, out: list[Effect]) -> None:
        for entry in feed.entries(step):
            request = entry.bound.request
            if request.ended:
                continue
            request.tokens(entry, now_us, out)
            if request.ended:
                self._settle(request, out)
        for finish in step.finished:
            late = feed.bound(finish.slot)
            if late is None or late.request.ended:
                continue
            late.request.finished(late.attempt, finish, now_us, out)
            if late.request.ended:
                self._settle(late.request, out)

    def _list_workers(self, message: router_session_pb2.WorkerList, now_us: int, out: list[Effect]) -> None:
        came, gone = self.workers.apply(message)
        for key in gone:
            feed = self._feeds.get(key)
            if feed is not None:
                feed.unlisted_since_us = now_us
        for worker in came:
            self._feed(worker.key, worker.address, now_us, out)

    def _feed(self, key: WorkerKey, address: str, now_us: int, out: list[Effect]) -> Feed:
        """The feed to a worker, dialled where it was not or where the worker has moved."""
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(key)
        listed = self.workers.address(key)
        feed.unlisted_since_us = None if listed else now_us
        address = listed or address
        if address and address != feed.address:
            if feed.address:
                out.append(CloseFeed(key))
                out.extend(self.feed_closed(key, now_us))
            feed.address = address
            out.append(OpenFeed(key, address))
        return feed

    def _settle(self, request: Request, out: list[Effect]) -> None:
        """An ended request leaves; its worker and the scheduler hear of it."""
        del self._requests[request.request_id]
        feeds = request.attempts.leave()
        if request.may_run_on:
            for feed in feeds:
                feed.send_closed(request.request_id, out)
            self._send_cancel(request.request_id, request.new.owner_gen, out)
        elif self._timing.confirm_close:
            self._unconfirmed[request.request_id] = (request.new.owner_gen, feeds)
        else:
            self._close(request.request_id, request.new.owner_gen, feeds, out)

    def _send_cancel(self, request_id: str, owner_gen: int, out: list[Effect]) -> None:
        cancel = router_session_pb2.CancelRequestCommand(request_id=request_id, owner_gen=owner_gen)
        self._session.send_end(router_session_pb2.RouterSessionRequest(cancel=cancel), out)

    def _close(self, request_id: str, owner_gen: int, feeds: list[Feed], out: list[Effect]) -> None:
        for feed in feeds:
            feed.send_closed(request_id, out)
        done = router_session_pb2.RequestsDone(request_ids=[request_id], owner_gens=[owner_gen])
        self._session.send_end(router_session_pb2.RouterSessionRequest(done=done), out)
