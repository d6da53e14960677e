"""The cluster as its leading scheduler sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as wire
from hyperflexis.scheduler.v1 import scheduler_service_pb2_grpc
from hyperflexis_common.channel import open_channel

PROBE_TIMEOUT_S = 2.0


async def find_leader(schedulers: Sequence[str]) -> str | None:
    """host:port of the leader; None where none of the schedulers knows one."""
    for address in schedulers:
        async with open_channel(address) as channel:
            stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
            try:
                reply = await stub.GetLeader(wire.GetLeaderRequest(), timeout=PROBE_TIMEOUT_S)
            except grpc.aio.AioRpcError:
                continue
        if reply.is_leader:
            return address
    return None


async def watch_cluster(leader: str) -> AsyncIterator[wire.WatchClusterResponse]:
    """What the leader sees, at once, on change and every second. Raises AioRpcError when it is lost."""
    async with open_channel(leader) as channel:
        stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
        async for message in stub.WatchCluster(wire.WatchClusterRequest()):
            yield message


async def look_at_cluster(schedulers: Sequence[str], timeout_s: float = 5.0) -> wire.WatchClusterResponse | None:
    """One look; None without a leader."""
    leader = await find_leader(schedulers)
    if leader is None:
        return None
    async with open_channel(leader) as channel:
        stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
        call = stub.WatchCluster(wire.WatchClusterRequest(), timeout=timeout_s)
        try:
            message = await call.read()
        except grpc.aio.AioRpcError:
            return None
        finally:
            call.cancel()
    return message if isinstance(message, wire.WatchClusterResponse) else None


async def ready_workers(schedulers: Sequence[str]) -> int:
    """Workers that may be given work now."""
    cluster = await look_at_cluster(schedulers)
    if cluster is None:
        return 0
    ready = capability_pb2.READINESS_READY
    return sum(w.readiness == ready and not w.disconnected and not w.hung for w in cluster.workers)
