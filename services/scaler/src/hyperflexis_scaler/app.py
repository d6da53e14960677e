"""The scaler process, put together."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import structlog

from hyperflexis.scaler.v1 import scaler_service_pb2_grpc
from hyperflexis_common.clock import SystemClock
from hyperflexis_common.metrics import serve_metrics
from hyperflexis_common.redis_access import RedisAccess
from hyperflexis_common.server import Info, ServiceServer, advertised, cancel_all, supervise, wait_for_signal
from hyperflexis_scaler.config import ScalerSettings
from hyperflexis_scaler.faults import Faults
from hyperflexis_scaler.fleet_log import FleetLog
from hyperflexis_scaler.lease import Lease
from hyperflexis_scaler.providers.process import ProcessProvider
from hyperflexis_scaler.scaler import Scaler
from hyperflexis_scaler.scheduler_client import SchedulerClient
from hyperflexis_scaler.service import ScalerServicer

log = structlog.get_logger(__name__)

SERVICE_NAME = "hyperflexis.scaler.v1.ScalerService"


async def run_scaler(settings: ScalerSettings, config: Path | None, faults: Faults) -> bool:
    """Serves until a signal. False: a background task failed. `config`: the file the settings came from."""
    clock = SystemClock()
    scaler_id = f"scaler-{secrets.token_hex(4)}"
    redis = RedisAccess(settings.redis, clock)
    provider = ProcessProvider(
        settings.cell, settings.state_dir, settings.log_dir, settings.worker_command, faults.passed
    )
    lease = Lease(redis, clock, scaler_id, settings.lease_ms * 1_000, on_change=lambda: scaler.wake())
    scheduler = SchedulerClient(settings.schedulers, on_view=lambda view: scaler.observe_cluster(view))
    scaler = Scaler(settings, config, provider, lease, FleetLog(redis), scheduler, clock, faults)

    server = ServiceServer(settings.listen, Info("scaler", scaler_id, clock=clock), [SERVICE_NAME])
    scaler_service_pb2_grpc.add_ScalerServiceServicer_to_server(ScalerServicer(scaler, lease), server.grpc)
    port = await server.start()
    lease.address = advertised(settings.listen, port, settings.advertise)
    serve_metrics(settings.metrics_port)

    await scaler.look()
    failed = asyncio.Event()
    keeping = supervise(lease.keep(), "lease", failed.set)
    rounds = supervise(scaler.run(), "rounds", failed.set)
    watching = supervise(scheduler.watch(), "watch", failed.set)
    ends = [asyncio.create_task(wait_for_signal()), asyncio.create_task(failed.wait())]
    print(f"ready service=scaler id={scaler_id} address={lease.address}", flush=True)
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    log.info("stopping", leads=lease.term is not None)
    await cancel_all(rounds, watching, *ends)
    # The lease is kept until the workers are gone: another scaler would start them anew.
    if not failed.is_set() and lease.term is not None and settings.on_stop == "stop_workers":
        await scaler.stop_workers()
    await cancel_all(keeping)
    await lease.release()
    await server.stop(settings.stop_grace_s)
    await redis.close()
    return not failed.is_set()
