"""Which scheduler leads, and what the leader says of the cluster."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import grpc.aio
from chaos_cell import ChaosCell

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc
from hyperflexis_common.channel import open_channel


async def leader_of(cell: ChaosCell, timeout_s: float = 30.0) -> str:
    """The name of the scheduler that leads. Raises TimeoutError where nobody does."""
    async with asyncio.timeout(timeout_s):
        while True:
            for name in cell.schedulers:
                async with open_channel(cell.scheduler_port(name)) as channel:
                    stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
                    try:
                        reply = await stub.GetLeader(scheduler_service_pb2.GetLeaderRequest(), timeout=1.0)
                    except grpc.aio.AioRpcError:
                        continue
                    if reply.is_leader:
                        return name
            await asyncio.sleep(0.2)


async def cluster_of(cell: ChaosCell) -> scheduler_service_pb2.WatchClusterResponse:
    """The leader's view, once. Raises RuntimeError where none is given."""
    for _ in range(5):
        name = await leader_of(cell)
        async with open_channel(cell.scheduler_port(name)) as channel:
            stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
            with contextlib.suppress(grpc.aio.AioRpcError):  # it has just stepped down: another one leads
                async for view in stub.WatchCluster(scheduler_service_pb2.WatchClusterRequest(), timeout=5.0):
                    return view
        await asyncio.sleep(0.2)
    raise RuntimeError("no leader says what it sees")


def present(view: scheduler_service_pb2.WatchClusterResponse) -> dict[str, int]:
    """The incarnations of the workers that can be given work."""
    return {
        worker.identity.worker_id: worker.identity.incarnation
        for worker in view.workers
        if worker.readiness == capability_pb2.READINESS_READY and not worker.disconnected and not worker.hung
    }


async def life_of(cell: ChaosCell, worker_id: str) -> int | None:
    """The incarnation under which the leader has a worker, connected or not."""
    found = [w.identity.incarnation for w in (await cluster_of(cell)).workers if w.identity.worker_id == worker_id]
    return found[0] if found else None


async def wait_for_another_life(cell: ChaosCell, worker_id: str, older: int | None, timeout_s: float) -> int | None:
    """Another incarnation of a worker; None where none turns up in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while (life := await life_of(cell, worker_id)) in (None, older):
                await asyncio.sleep(0.1)
            return life
    return None
