"""The worker's side of the protocol (docs/protocol.md, sections 2, 4, 5 and 6).

Messages and engine events in, effects out. One core per process; its requests survive every session.
"""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2, identity_pb2
from hyperflexis.scheduler.v1 import router_session_pb2, worker_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.cache_news import CacheNews
from hyperflexis_worker.core.effects import DropScheduler, Effect, Leave, ToFeed, ToScheduler
from hyperflexis_worker.core.engine_event import EngineEvent
from hyperflexis_worker.core.feed import Feed
from hyperflexis_worker.core.move_event import MoveEvent
from hyperflexis_worker.core.moves import Moves
from hyperflexis_worker.core.profile import WorkerProfile
from hyperflexis_worker.core.reporting import Reporter
from hyperflexis_worker.core.requests import Requests

BUSY_US = 3_000_000
"""Declared with each report while the engine loads: longer than two of them, so that one may be lost."""


class WorkerCore:
    def __init__(self, profile: WorkerProfile, role: capability_pb2.Role.ValueType = capability_pb2.ROLE_MIXED) -> None:
        self.profile = profile
        self.role: capability_pb2.Role.ValueType = role
        self._drained = False
        """By the scheduler, which may undo it."""
        self._stopping = False
        """By whoever stops this process: for good."""
        self._one_way_us = 0
        """How long the scheduler's messages take, as it measured."""
        self._fence = identity_pb2.Fence()
        self._connected = False
        self._feeds: dict[int, Feed] = {}
        self._reporter = Reporter()
        self._effects: list[Effect] = []
        self._steps = 0
        self._cache = CacheNews()
        self._step_time = profile.step_time or capability_pb2.StepTimeModel()
        self.telemetry: worker_session_pb2.Telemetry | None = None
        """The shell's newest reading of the GPU."""
        self.requests = Requests(profile, self._reporter, self._feeds, self._effects)
        self.moves = Moves(profile, self._reporter, self.requests, self._effects)

    # --- the scheduler's session -------------------------------------------------------------------------

    def register_message(self) -> worker_session_pb2.WorkerSessionRequest:
        """The first message of every session."""
        profile = self.profile
        return worker_session_pb2.WorkerSessionRequest(
            register=worker_session_pb2.Register(
                identity=profile.key.proto(),
                protocol_version=PROTOCOL_VERSION,
                address=profile.address,
                model=profile.model,
                fingerprint=profile.fingerprint,
                tp_size=1,
                gpu_type=profile.gpu_type,
                capabilities=profile.capabilities,
                role=self.role,
                readiness=self.readiness,
                highest_fence=self._fence,
                tags=dict(profile.tags),
                version=profile.version,
            )
        )

    @property
    def readiness(self) -> capability_pb2.Readiness.ValueType:
        if self._stopping or self._drained:
            return capability_pb2.READINESS_DRAINING
        return capability_pb2.READINESS_READY if self.requests.engine_up else capability_pb2.READINESS_LOADING

    @property
    def highest_fence(self) -> identity_pb2.Fence:
        return self._fence

    @property
    def connected(self) -> bool:
        """A leader has registered this worker and its session lives."""
        return self._connected

    def scheduler_message(self, message: worker_session_pb2.WorkerSessionResponse, now_us: int) -> list[Effect]:
        if message.epoch and message.epoch < self._fence.epoch:
            self._effects.append(DropScheduler(f"epoch {message.epoch} is over, {self._fence.epoch} leads"))
            return self._take()
        kind = message.WhichOneof("message")
        if kind == "registered":
            self._registered(message.registered, now_us)
        elif kind == "rejected":
            rejected = message.rejected
            self._effects.append(
                Leave(rejected.message) if rejected.permanent else DropScheduler(f"rejected: {rejected.message}")
            )
        elif not self._connected:
            # It begins every session: it was lost, and the scheduler waits for a Snapshot as this worker does for it.
            self._effects.append(DropScheduler(f"{kind} came where registered was due"))
        elif kind == "ping":
            self._one_way_us = message.ping.one_way_delay_us
            pong = router_session_pb2.Pong(id=message.ping.id, highest_fence=self._fence)
            self._effects.append(ToScheduler(worker_session_pb2.WorkerSessionRequest(pong=pong)))
        elif message.seq and self._in_sequence(message.seq):
            self._command(message, kind or "", now_us)
        return self._take(now_us)

    def scheduler_closed(self, now_us: int) -> list[Effect]:
        self._connected = False
        self._one_way_us = 0
        return self._take()

    def _registered(self, registered: worker_session_pb2.Registered, now_us: int) -> None:
        self._fence.CopyFrom(registered.fence)
        self._connected = True
        self._cache.begin()
        load = self._load(now_us)
        self._reporter.begin(registered.report_interval_us, load, (self.role, self.readiness), now_us)
        snapshot = worker_session_pb2.Snapshot(
            requests=self.requests.statuses(),
            load=load,
            role=self.role,
            readiness=self.readiness,
            links=self.moves.links.statuses(),
        )
        self._effects.append(ToScheduler(worker_session_pb2.WorkerSessionRequest(snapshot=snapshot)))

    def _in_sequence(self, seq: int) -> bool:
        """A gap in the command numbers means that one was lost: only a Snapshot sets that right."""
        expected = self._reporter.applied_seq + 1
        if seq != expected:
            self._effects.append(DropScheduler(f"command {seq} came where {expected} was due"))
            self._connected = False
            return False
        self._reporter.applied_seq = seq
        return True

    def _command(self, message: worker_session_pb2.WorkerSessionResponse, kind: str, now_us: int) -> None:
        match kind:
            case "run":
                arrival_us = now_us - message.run.age_us - self._one_way_us
                self.requests.run(message.run, self._stopping or self._drained, arrival_us, now_us)
            case "cancel":
                self.requests.cancel(message.cancel.request_id, Attempt.of(message.cancel.attempt), now_us)
            case "revoke":
                self.requests.revoke(message.revoke.request_id, Attempt.of(message.revoke.attempt), now_us)
            case "set_role":
                self.role = message.set_role.role
            case "drain":
                self._drained = not message.drain.undo
            case "attach_kv":
                arrival_us = now_us - message.attach_kv.run.age_us - self._one_way_us
                self.moves.attach(message.attach_kv, self._stopping or self._drained, arrival_us, now_us)
            case "link" if message.link.unlink:
                self.moves.links.unlink(message.link.peer.worker_id)
            case "link":
                self.moves.links.link(message.link.peer)
            case _:
                # Migrate, ReleaseKv, LoadWeights: capabilities say that nothing stands behind them, so no scheduler
                # of this version sends them; one that does loses nothing.
                pass

    # --- the routers' feeds ------------------------------------------------------------------------------

    def feed_opened(self, feed: int, hello: token_feed_pb2.FeedHello, now_us: int) -> list[Effect]:
        """`feed` is a number of the shell's, never used twice."""
        self._feeds[feed] = Feed(feed, hello.router_id)
        welcome = token_feed_pb2.FeedWelcome(identity=self.profile.key.proto(), protocol_version=PROTOCOL_VERSION)
        self._effects.append(ToFeed(feed, token_feed_pb2.TokenFeedResponse(welcome=welcome)))
        return self._take(now_us)

    def feed_message(self, feed: int, message: token_feed_pb2.TokenFeedRequest, now_us: int) -> list[Effect]:
        match message.WhichOneof("message"):
            case "start":
                self.requests.start(feed, message.start, now_us)
            case "subscribe":
                self.requests.subscribe(feed, message.subscribe)
            case "closed":
                for request_id in message.closed.request_ids:
                    self.requests.closed(feed, request_id, now_us)
        return self._take(now_us)

    def feed_closed(self, feed: int, now_us: int) -> list[Effect]:
        self._feeds.pop(feed, None)
        self.requests.feed_closed(feed, now_us)
        return self._take(now_us)

    # --- the engine --------------------------------------------------------------------------------------

    def engine_stepped(self, events: EngineEvent, now_us: int) -> list[Effect]:
        self._steps += 1
        if events.cache_lost:
            self._cache.lost()
        self._cache.changed(events.cache)
        if events.step_time is not None:
            self._step_time = events.step_time
        self.requests.stepped(events, now_us)
        return self._take(now_us)

    def engine_revoked(self, request_id: str, attempt: Attempt, dropped: bool, now_us: int) -> list[Effect]:
        self.requests.revoked(request_id, attempt, dropped, now_us)
        return self._take(now_us)

    def engine_lost(self, reason: str, now_us: int) -> list[Effect]:
        """The engine died: what it worked on is gone, what it finished is still here."""
        self._cache.lost()
        self.moves.engine_lost(now_us)
        self.requests.engine_lost(reason, now_us)
        return self._take(now_us)

    def engine_ready(self, now_us: int) -> list[Effect]:
        """A new engine serves."""
        self.requests.engine_ready(now_us)
        return self._take(now_us)

    def move_event(self, event: MoveEvent, now_us: int) -> list[Effect]:
        """An answer of the engine or of another worker, or that worker's question."""
        self.moves.take(event, now_us)
        return self._take(now_us)

    # --- time --------------------------------------------------------------------------------------------

    def tick(self, now_us: int) -> list[Effect]:
        """Call at least each 20 ms: news that came just after a report waits for it."""
        self.requests.tick(now_us)
        self.moves.tick(now_us)
        return self._take(now_us)

    def drain(self, now_us: int) -> list[Effect]:
        """The process was asked to stop: nothing new from here on."""
        self._stopping = True
        return self._take(now_us)

    def _take(self, now_us: int | None = None) -> list[Effect]:
        for feed in self._feeds.values():
            for response in feed.flush(self._steps):
                self._effects.append(ToFeed(feed.feed, response))
        if now_us is not None and self._connected:
            self._report(now_us)
        effects = self._effects[:]
        self._effects.clear()
        return effects

    def _load(self, now_us: int) -> worker_session_pb2.WorkerLoad:
        load = self.requests.load(now_us)
        load.queued_prefill_tokens += self.moves.pulls.tokens
        return load

    def _report(self, now_us: int) -> None:
        """Tells the scheduler what there is to tell, if it is time."""
        standing = (self.role, self.readiness)
        if not self._reporter.ripe(standing, now_us):
            return
        load = self._load(now_us)
        if not self._reporter.due(load, standing, now_us):
            return
        report = self._reporter.report(load, standing, now_us)
        report.step_time.CopyFrom(self._step_time)
        if self._cache:
            report.cache.CopyFrom(self._cache.take())
        report.links.extend(self.moves.links.statuses())
        report.kv_progress.extend(self.moves.arrivals.progress())
        if self.telemetry is not None:
            report.telemetry.CopyFrom(self.telemetry)
        if not self.requests.engine_up:
            report.busy.CopyFrom(worker_session_pb2.Busy(reason="loading engine", for_us=BUSY_US))
        self._effects.append(ToScheduler(worker_session_pb2.WorkerSessionRequest(report=report)))
