"""Starts and stops one worker process."""

from __future__ import annotations

import asyncio
import contextlib
import secrets

import structlog
from prometheus_client import REGISTRY, CollectorRegistry

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.worker.v1 import worker_service_pb2_grpc
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.clock import SystemClock
from hyperflexis_common.metrics import serve_metrics
from hyperflexis_common.server import (
    Info,
    ServiceServer,
    advertised,
    cancel_all,
    supervise,
    version_of,
    wait_for_signal,
)
from hyperflexis_common.step_time import load_profile
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.core.profile import WorkerProfile
from hyperflexis_worker.core.worker import WorkerCore
from hyperflexis_worker.engine.frames import EngineFailed, EngineReady
from hyperflexis_worker.engine.handle import EngineHandle
from hyperflexis_worker.metrics import PullOutcomes, WorkerMetrics
from hyperflexis_worker.service import WorkerService
from hyperflexis_worker.shell import Shell
from hyperflexis_worker.telemetry import GpuTelemetry

log = structlog.get_logger(__name__)

ROLES = {
    "mixed": capability_pb2.ROLE_MIXED,
    "prefill": capability_pb2.ROLE_PREFILL,
    "decode": capability_pb2.ROLE_DECODE,
}


class EngineUnusable(Exception):
    """The engine did not come up; the message says why."""


class Worker:
    """One worker: `start()`, then `serve()` until a signal, then everything is stopped."""

    def __init__(self, settings: WorkerSettings, registry: CollectorRegistry = REGISTRY) -> None:
        worker_id = settings.worker_id or f"worker-{secrets.token_hex(4)}"
        self.settings = settings.model_copy(update={"worker_id": worker_id})
        self.key = WorkerKey(worker_id, secrets.randbits(64))
        self._clock = SystemClock()
        self._registry = registry
        self.address = ""
        """Once started: what others dial."""

    async def start(self) -> str:
        """Starts the engine, then the server. Returns the address others dial. Raises EngineUnusable."""
        settings = self.settings
        self._engine = EngineHandle(settings)
        await self._engine.start()
        ready = await self._engine_ready()
        info = Info("worker", settings.worker_id, clock=self._clock)
        self._server = ServiceServer(settings.listen, info, ["hyperflexis.worker.v1.WorkerService"])
        address = self.address = advertised(settings.listen, self._server.bind(), settings.advertise)
        core = WorkerCore(self._profile(ready, address), ROLES[settings.role])
        self._registry.register(PullOutcomes(core.moves.pulls.outcomes))
        telemetry = GpuTelemetry(settings.device)
        self._shell = Shell(settings, core, self._engine, self._clock, WorkerMetrics(self._registry), telemetry)
        self._shell.moving.engine_ready(ready)
        worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(
            WorkerService(self._shell, self.key), self._server.grpc
        )
        await self._server.start()
        self._stop = asyncio.Event()
        self._tasks = [
            supervise(self._shell.engine_forever(), "engine", self._stop.set),
            supervise(self._shell.tick_forever(), "tick", self._stop.set),
            supervise(self._shell.telemetry_forever(), "telemetry", self._stop.set),
            supervise(self._shell.link.run_forever(), "scheduler link", self._stop.set),
        ]
        return address

    async def serve(self) -> int:
        """Until a signal (0), or until the cluster or a bug says leave (1)."""
        waits = [
            asyncio.create_task(wait_for_signal(), name="signal"),
            asyncio.create_task(self._shell.leaving.wait(), name="leaving"),
            asyncio.create_task(self._stop.wait(), name="failed"),
        ]
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        asked = waits[0] in done
        await cancel_all(*waits)
        if asked:
            log.info("draining", grace_s=self.settings.stop_grace_s)
            await self._shell.drain(self.settings.stop_grace_s)
        await self.close()
        return 0 if asked else 1

    async def close(self) -> None:
        await cancel_all(*self._tasks)
        await self._server.stop(0.5)
        await self._shell.stop_engine()

    async def _engine_ready(self) -> EngineReady:
        reason = "the engine process ended before it was ready; its log says why"
        async with contextlib.aclosing(self._engine.events()) as events:
            async for event in events:
                if isinstance(event, EngineReady):
                    return event
                if isinstance(event, EngineFailed):
                    reason = event.message
                    break
        await self._engine.stop(0.5)
        raise EngineUnusable(reason)

    def _profile(self, ready: EngineReady, address: str) -> WorkerProfile:
        settings = self.settings
        scale = settings.time_scale if settings.engine == "modelled" else 1.0
        moves = bool(ready.kv_name)
        return WorkerProfile(
            key=self.key,
            address=address,
            model=settings.served_model().name,
            fingerprint=ready.fingerprint,
            capabilities=capability_pb2.EngineCapabilities(
                step_planned=ready.step_planned,
                max_num_tokens=settings.max_num_tokens,
                max_num_seqs=settings.max_num_seqs,
                kv_ticket=capability_pb2.KV_TICKET_KIND_BLOCKS if moves else capability_pb2.KV_TICKET_KIND_NONE,
                migrate=capability_pb2.MIGRATE_KIND_LIVE if moves else capability_pb2.MIGRATE_KIND_REPREFILL,
                rng=capability_pb2.RNG_KIND_COUNTER,
                weights=capability_pb2.WEIGHTS_KIND_NONE,
                context_length=min(ready.context_length, (ready.total_blocks - 1) * ready.block_tokens),
                vocab_size=ready.vocab_size,
                sampling_features=ready.sampling_features,
                hash_block_tokens=ready.hash_block_tokens,
            ),
            total_blocks=ready.total_blocks,
            block_tokens=ready.block_tokens,
            block_bytes=ready.block_bytes,
            eos_token_ids=frozenset(ready.eos_token_ids),
            gpu_type=settings.gpu_type,
            tags=tuple(sorted(settings.tags.items())),
            version=version_of("worker"),
            step_time=load_profile(settings.profile).scaled(scale).proto(),
        )


async def run_worker(settings: WorkerSettings) -> int:
    serve_metrics(settings.metrics_port)
    worker = Worker(settings)
    address = await worker.start()
    print(f"ready service=worker id={worker.settings.worker_id} address={address}", flush=True)
    return await worker.serve()
