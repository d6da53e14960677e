"""The cluster as a message."""

from __future__ import annotations

from hyperflexis.scheduler.v1 import scheduler_service_pb2
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.worker import WorkerState


def describe(cell: Cell, now_us: int) -> scheduler_service_pb2.WatchClusterResponse:
    waiting = len(cell.hold) + len(cell.settling)
    return scheduler_service_pb2.WatchClusterResponse(
        fence=cell.fence,
        workers=[_worker(worker, now_us) for worker in cell.fleet],
        held=waiting,
        active=cell.book.active - waiting,
        tiers=cell.tally.tiers(),
        routers=[router.key.router_id for router in cell.routers.by_session.values()],
        moves=cell.tally.moves(),
    )


def _worker(worker: WorkerState, now_us: int) -> scheduler_service_pb2.ClusterWorker:
    return scheduler_service_pb2.ClusterWorker(
        identity=worker.key.proto(),
        address=worker.address,
        model=worker.model,
        gpu_type=worker.gpu_type,
        role=worker.role,
        readiness=worker.readiness,
        load=worker.load,
        tags=worker.tags,
        silent_us=now_us - worker.pulse.heard_us,
        disconnected=worker.session is None,
        hung=worker.hung,
        version=worker.version,
        step_time=worker.step_time,
        telemetry=worker.telemetry,
        links=worker.links.values(),
        moving_in=len(worker.incoming),
        moving_out=sum(1 for state in worker.attempts.values() if state.move is not None),
    )
