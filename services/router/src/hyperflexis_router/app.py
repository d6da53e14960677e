"""The router process, put together."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from pathlib import Path

import structlog

from hyperflexis.router.v1 import inference_service_pb2_grpc
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.clock import Clock, SystemClock
from hyperflexis_common.config import ConfigError
from hyperflexis_common.metrics import serve_metrics
from hyperflexis_common.model_files import TOKENIZER_FILES, ModelNotFound, model_directory
from hyperflexis_common.redis_access import RedisAccess
from hyperflexis_common.server import Info, ServiceServer, advertised, cancel_all, supervise, wait_for_signal
from hyperflexis_router.admission import Authenticator, InFlight
from hyperflexis_router.config import RouterSettings
from hyperflexis_router.core.router import RouterCore
from hyperflexis_router.core.timing import RouterTiming
from hyperflexis_router.faults import Faults
from hyperflexis_router.feeds import Feeds
from hyperflexis_router.intake import Intake
from hyperflexis_router.queries import Queries
from hyperflexis_router.recorder import Recorder
from hyperflexis_router.resumption import Resumption
from hyperflexis_router.scheduler_link import SchedulerLink
from hyperflexis_router.service import InferenceService
from hyperflexis_router.store import RequestStore
from hyperflexis_router.switchboard import Switchboard
from hyperflexis_router.tokenizing import Tokenizing

log = structlog.get_logger(__name__)

TICK_S = 0.1
SERVICE_NAME = "hyperflexis.router.v1.InferenceService"


class Connections:
    """The switchboard's lines: the scheduler session and the feeds."""

    def __init__(self, scheduler: SchedulerLink, feeds: Feeds) -> None:
        self._scheduler = scheduler
        self._feeds = feeds

    def to_scheduler(self, message: router_session_pb2.RouterSessionRequest) -> None:
        self._scheduler.send(message)

    def drop_scheduler(self, reason: str) -> None:
        self._scheduler.drop()

    def to_feed(self, worker: WorkerKey, message: token_feed_pb2.TokenFeedRequest) -> None:
        self._feeds.send(worker, message)

    def open_feed(self, worker: WorkerKey, address: str) -> None:
        self._feeds.open(worker, address)

    def close_feed(self, worker: WorkerKey) -> None:
        self._feeds.close(worker)


class RouterApp:
    """One router: `start`, then `stop`. Raises ConfigError where its settings cannot be used."""

    def __init__(self, settings: RouterSettings, faults: Faults | None = None, clock: Clock | None = None) -> None:
        self.settings = settings
        self.router_id = settings.router_id or f"router-{secrets.token_hex(4)}"
        self.address = ""
        faults = faults or Faults()
        clock = clock or SystemClock()
        paths = {model.name: _tokenizer_of(model.path) for model in settings.models if model.path is not None}
        self._tokenizing = Tokenizing(paths, settings.tokenizer_threads)
        catalog, limits = settings.catalog(self._tokenizing.chat_models), settings.request_limits()
        self._access = RedisAccess(settings.redis, clock)
        self.in_flight = InFlight(settings.max_in_flight, settings.max_in_flight_per_tenant)
        timing = RouterTiming(confirm_close=True, no_scheduler_us=settings.no_scheduler_ms * 1_000)
        self.board = Switchboard(
            RouterCore(self.router_id, secrets.randbits(64), timing), clock, self.in_flight, faults
        )
        self.faults = faults
        self.store = RequestStore(self._access, self.router_id, faults, finished_ttl_s=settings.finished_ttl_s)
        self.recorder = Recorder(self.store, self.board, faults)
        self.board.on_dirty = self.recorder.dirty
        self._scheduler = SchedulerLink(settings.schedulers, self.board, faults)
        self._feeds = Feeds(self.board)
        self.board.lines = Connections(self._scheduler, self._feeds)
        features = self.board.core.workers.sampling_features
        intake = Intake(catalog, limits, self._tokenizing, self.store, clock, faults, features)
        resumption = Resumption(intake, self.board, self.in_flight)
        self.service = InferenceService(
            board=self.board,
            intake=intake,
            resumption=resumption,
            recorder=self.recorder,
            queries=Queries(catalog, self.board, resumption, self._scheduler, clock),
            authenticator=Authenticator({key.key_sha256: key.tenant for key in settings.api_keys}),
            in_flight=self.in_flight,
            clock=clock,
            faults=faults,
            detach_grace_limit_ms=limits.detach_grace_ms,
        )
        self._server = ServiceServer(settings.listen, Info("router", self.router_id), [SERVICE_NAME])
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(self.service, self._server.grpc)
        self._tasks: list[asyncio.Task[None]] = []
        self.failed = asyncio.Event()

    async def start(self) -> str:
        """Serves; returns the address that others dial."""
        self.faults.listen()
        port = await self._server.start()
        self.address = advertised(self.settings.listen, port, self.settings.advertise)
        for name, coroutine in [
            ("scheduler link", self._scheduler.run()),
            ("recorder", self.recorder.run()),
            ("ticks", self._tick()),
        ]:
            self._tasks.append(supervise(coroutine, name, self.failed.set))
        return self.address

    async def stop(self, grace_s: float) -> None:
        """Drains and stops: unhealthy at once, streams within the grace, the rest resumable elsewhere."""
        await self._server.set_healthy(False)
        await self.service.drain(grace_s)
        await self._server.stop(0.5)
        await cancel_all(*self._tasks)
        await self._scheduler.close()
        await self._feeds.close_all()
        await self._access.close()
        self._tokenizing.close()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.board.tick()


async def serve(settings: RouterSettings) -> None:
    """The process's whole life. Raises RuntimeError where the address is taken or a part of it failed."""
    app = RouterApp(settings)
    serve_metrics(settings.metrics_port)
    address = await app.start()
    print(f"ready service=router id={app.router_id} address={address}", flush=True)
    stopped = asyncio.create_task(wait_for_signal())
    failed = asyncio.create_task(app.failed.wait())
    await asyncio.wait([stopped, failed], return_when=asyncio.FIRST_COMPLETED)
    await app.stop(settings.stop_grace_s)
    await cancel_all(stopped, failed)
    if app.failed.is_set():
        raise RuntimeError("a background task failed; see the log")


def key_hash(key: str) -> str:
    """What the configuration holds in place of an API key."""
    return hashlib.sha256(key.encode()).hexdigest()


def _tokenizer_of(path: Path) -> Path:
    """The directory with a model's tokenizer. Raises ConfigError."""
    try:
        return model_directory(path, TOKENIZER_FILES)
    except ModelNotFound as error:
        raise ConfigError(str(error)) from error
