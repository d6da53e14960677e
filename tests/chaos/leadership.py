"""Which scheduler leads, and what the leader says of the cluster."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from chaos_cell import ChaosCell

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
    """The leader's view, once."""
    name = await leader_of(cell)
    async with open_channel(cell.scheduler_port(name)) as channel:
        stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
        async for view in stub.WatchCluster(scheduler_service_pb2.WatchClusterRequest(), timeout=5.0):
            return view
    raise RuntimeError(f"{name} said nothing")
