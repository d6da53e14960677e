"""One scheduler process, put together."""

from __future__ import annotations

import asyncio
import gc
import secrets

from prometheus_client import REGISTRY, CollectorRegistry

from hyperflexis.scheduler.v1 import scheduler_service_pb2_grpc
from hyperflexis_common.clock import Clock, SystemClock
from hyperflexis_common.metrics import serve_metrics
from hyperflexis_common.redis_access import RedisAccess
from hyperflexis_common.server import Info, ServiceServer, advertised, cancel_all, supervise, wait_for_signal
from hyperflexis_scheduler.config import SchedulerSettings
from hyperflexis_scheduler.core.dispatch_policy import POLICIES
from hyperflexis_scheduler.core.election import Election
from hyperflexis_scheduler.core.scheduler import SchedulerCore
from hyperflexis_scheduler.desk import Desk
from hyperflexis_scheduler.faults import Faults
from hyperflexis_scheduler.leader_lease import LeaderLease
from hyperflexis_scheduler.leadership import Leadership
from hyperflexis_scheduler.memory_keeper import MemoryKeeper
from hyperflexis_scheduler.memory_store import MemoryStore
from hyperflexis_scheduler.metrics import Metrics
from hyperflexis_scheduler.service import SchedulerService

SERVICE_NAME = "hyperflexis.scheduler.v1.SchedulerService"


class SchedulerApp:
    """start() listens and stands for election; stop() hands over; kill() just ends, as a crash would."""

    def __init__(
        self, settings: SchedulerSettings, clock: Clock | None = None, registry: CollectorRegistry | None = None
    ) -> None:
        self.settings = settings
        self.instance_id = settings.instance_id or f"scheduler-{secrets.token_hex(4)}"
        self.address = ""
        self.failed = asyncio.Event()
        """Set when the background work has died: the process should end."""
        self._clock = clock or SystemClock()
        self._faults = Faults()
        self._core = SchedulerCore(settings.rules(), POLICIES[settings.policy]())
        self._desk = Desk(self._core, self._clock, self._faults, settings.outbox_limit)
        self._metrics = Metrics(self._core, registry or REGISTRY)
        self._redis = RedisAccess(settings.redis, self._clock)
        info = Info("scheduler", self.instance_id, clock=self._clock)
        self._server = ServiceServer(settings.listen, info, [SERVICE_NAME])
        timing = settings.timing()
        self.leadership = Leadership(
            election=Election(self.instance_id, timing, self._clock.now_us()),
            lease=LeaderLease(self._redis, self.instance_id, timing.lease_us),
            desk=self._desk,
            clock=self._clock,
            faults=self._faults,
            probe_timeout_s=settings.probe_timeout_ms / 1_000,
            keeper=MemoryKeeper(MemoryStore(self._redis, self._core.rules.remembered_us), self._desk),
        )
        service = SchedulerService(self._desk, self.leadership, self._clock, self._metrics)
        scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server(service, self._server.grpc)
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Raises RuntimeError where the address cannot be bound."""
        port = await self._server.start()
        self.address = self.leadership.address = advertised(self.settings.listen, port, self.settings.advertise)
        self._faults.listen()
        self._running = supervise(self.leadership.run(), "leadership", self.failed.set)

    async def stop(self) -> None:
        """Graceful: a standby takes over at once."""
        await cancel_all(self._running)
        await self.leadership.stop()
        await self._server.stop(self.settings.stop_grace_seconds)
        await self._redis.close()

    async def kill(self) -> None:
        """Ends without a word to Redis or the peers."""
        await cancel_all(self._running)
        await self._server.stop(0)
        await self._redis.close()


async def serve(settings: SchedulerSettings) -> None:
    """Runs until a signal."""
    app = SchedulerApp(settings)
    await app.start()
    # Modules and messages' descriptors live for ever: keep full collections, which stop every stream, short and rare.
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    serve_metrics(settings.metrics_port)
    print(f"ready service=scheduler id={app.instance_id} address={app.address}", flush=True)
    signalled = asyncio.create_task(wait_for_signal())
    failed = asyncio.create_task(app.failed.wait())
    await asyncio.wait({signalled, failed}, return_when=asyncio.FIRST_COMPLETED)
    await cancel_all(signalled, failed)
    await app.stop()
    if app.failed.is_set():
        raise SystemExit(1)
