"""Wires one worker process together: core, engine, the scheduler's session and the routers' feeds."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable

import structlog

from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.clock import Clock
from hyperflexis_common.outbox import Outbox, OutboxFull
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.core.effects import (
    AddSequence,
    DropScheduler,
    DropSequence,
    Effect,
    Leave,
    RevokeSequence,
    ToFeed,
    ToScheduler,
)
from hyperflexis_worker.core.worker import WorkerCore
from hyperflexis_worker.engine import frames, kv_frames
from hyperflexis_worker.engine.handle import EngineHandle
from hyperflexis_worker.metrics import WorkerMetrics
from hyperflexis_worker.moving import Moving
from hyperflexis_worker.scheduler_link import SchedulerLink
from hyperflexis_worker.telemetry import GpuTelemetry
from hyperflexis_worker.translation import add_frame, engine_event

log = structlog.get_logger(__name__)

TICK_S = 0.02
FEED_LIMIT = 65_536
"""Messages that may wait for one router. Beyond it its feed is cut: its requests are orphans until it asks for them."""
TELEMETRY_S = 1.0
ENGINE_HUNG_US = 30_000_000
"""An engine with work that has not stepped for this long is killed; its requests have long gone elsewhere."""
ENGINE_RESTART_S = (0.1, 0.5, 1.0, 5.0)
"""Waits before each new life of the engine, the last one over and over."""


class Shell:
    """Runs the core. Everything here is on one event loop, so the core needs no lock."""

    def __init__(
        self,
        settings: WorkerSettings,
        core: WorkerCore,
        engine: EngineHandle,
        clock: Clock,
        metrics: WorkerMetrics,
        telemetry: GpuTelemetry,
    ) -> None:
        self._settings = settings
        self._core = core
        self._engine = engine
        self._clock = clock
        self._metrics = metrics
        self._telemetry = telemetry
        self._feeds: dict[int, Outbox[token_feed_pb2.TokenFeedResponse]] = {}
        self._next_feed = 1
        self._effects: deque[Effect] = deque()
        self._applying = False
        self._killed: EngineHandle | None = None
        self.link = SchedulerLink(settings.schedulers, core, self.apply, clock)
        self.moving = Moving(core, lambda frame: self._engine.send(frame), self.apply, clock, metrics)
        self.leaving = asyncio.Event()
        """Set when this process has no business in the cluster any more."""

    # --- feeds (called by the gRPC servicer) -------------------------------------------------------------

    def open_feed(self, hello: token_feed_pb2.FeedHello) -> tuple[int, Outbox[token_feed_pb2.TokenFeedResponse]]:
        feed, self._next_feed = self._next_feed, self._next_feed + 1
        outbox = self._feeds[feed] = Outbox[token_feed_pb2.TokenFeedResponse](FEED_LIMIT)
        self.apply(self._core.feed_opened(feed, hello, self._clock.now_us()))
        return feed, outbox

    def feed_message(self, feed: int, message: token_feed_pb2.TokenFeedRequest) -> None:
        if feed in self._feeds:  # else it was cut, and is only still being read
            self.apply(self._core.feed_message(feed, message, self._clock.now_us()))

    def close_feed(self, feed: int) -> None:
        outbox = self._feeds.pop(feed, None)
        if outbox is not None:
            outbox.close()
            self.apply(self._core.feed_closed(feed, self._clock.now_us()))

    # --- effects -----------------------------------------------------------------------------------------

    def apply(self, effects: Iterable[Effect]) -> None:
        """Carries effects out in the order in which the core made them, those that they lead to included."""
        self._effects.extend(effects)
        if self._applying:
            return
        self._applying = True
        try:
            while self._effects:
                self._carry_out(self._effects.popleft())
        finally:
            self._applying = False

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case ToFeed(feed, message):
                self._to_feed(feed, message)
            case ToScheduler(message):
                self.link.send(message)
            case AddSequence(number, sequence):
                self._engine.send(add_frame(number, sequence, self._clock.now_us()))
            case DropSequence(request_id, attempt):
                self._engine.send(frames.Drop(request_id, *attempt))
            case RevokeSequence(request_id, attempt):
                self._engine.send(frames.Revoked(request_id, *attempt))
            case DropScheduler(reason):
                self.link.drop(reason)
            case Leave(reason):
                log.error("the scheduler has no place for this worker", reason=reason)
                self.leaving.set()
            case _:
                self.moving.carry_out(effect)

    def _to_feed(self, feed: int, message: token_feed_pb2.TokenFeedResponse) -> None:
        outbox = self._feeds.get(feed)
        if outbox is None:
            return
        try:
            outbox.put(message)
        except OutboxFull as error:
            log.warning("a router reads too slowly, its feed is cut", feed=feed, error=str(error))
            del self._feeds[feed]
            outbox.cut()
            self.apply(self._core.feed_closed(feed, self._clock.now_us()))

    # --- loops -------------------------------------------------------------------------------------------

    async def tick_forever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now_us = self._clock.now_us()
            self.apply(self._core.tick(now_us))
            # One that still loads has no steps to make.
            stalled = self._core.requests.engine_up and self._core.requests.load(now_us).stalled_us > ENGINE_HUNG_US
            if stalled and self._killed is not self._engine:
                log.error("the engine has not stepped for too long, killing it", pid=self._engine.pid)
                self._killed = self._engine
                self._engine.kill()

    async def telemetry_forever(self) -> None:
        while True:
            self._core.telemetry = await asyncio.to_thread(self._telemetry.read)
            await asyncio.sleep(TELEMETRY_S)

    async def engine_forever(self) -> None:
        """Reads the engine's events; when it dies, says so at once and starts it again."""
        lives = 0
        while True:
            async for event in self._engine.events():
                self._engine_event(event)
                if isinstance(event, frames.EngineReady):
                    lives = 0
            log.error("the engine died, starting it again", pid=self._engine.pid)
            self._metrics.engine_restarts.inc()
            self.moving.engine_lost()
            self.apply(self._core.engine_lost("the engine process ended", self._clock.now_us()))
            await self._engine.stop(grace_s=0.2)
            await asyncio.sleep(ENGINE_RESTART_S[min(lives, len(ENGINE_RESTART_S) - 1)])
            lives += 1
            self._engine = EngineHandle(self._settings)
            await self._engine.start()

    def _engine_event(self, event: frames.FromEngine) -> None:
        now_us = self._clock.now_us()
        match event:
            case frames.Stepped():
                self._metrics.stepped(event)
                self.apply(self._core.engine_stepped(engine_event(event), now_us))
            case frames.Revoked():
                attempt = Attempt(event.leader_epoch, event.seq)
                self.apply(self._core.engine_revoked(event.request_id, attempt, event.dropped, now_us))
            case frames.EngineReady():
                if event.fingerprint != self._core.profile.fingerprint:
                    log.error("the engine came back with other weights")
                    self.leaving.set()
                    return
                self.moving.engine_ready(event)
                self.apply(self._core.engine_ready(now_us))
            case frames.EngineFailed():
                log.error("the engine failed", message=event.message)
            case kv_frames.Wedged():
                log.error("a transfer does not end: only a new process is safe", message=event.message)
                self.apply(self._core.drain(now_us))
                self.leaving.set()
            case _:
                self.moving.engine_event(event)

    async def drain(self, grace_s: float) -> None:
        """Takes nothing new; returns when nothing runs, or after the grace."""
        self.apply(self._core.drain(self._clock.now_us()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._core.requests.unfinished:
                    await asyncio.sleep(0.05)

    async def stop_engine(self) -> None:
        await self.moving.close()
        await self._engine.stop()
