"""A scheduler that leads, shows a cluster made by its test, and remembers what was applied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from hyperflexis.common.v1 import capability_pb2, identity_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as ss
from hyperflexis.scheduler.v1 import scheduler_service_pb2_grpc
from hyperflexis_common.channel import SERVER_OPTIONS

LOOK_S = 0.05


class FakeScheduler(scheduler_service_pb2_grpc.SchedulerServiceServicer):
    """`workers` names the workers that are there now; a drained one says so."""

    def __init__(self, workers: Callable[[], list[str]], leader_address: str = "") -> None:
        self.workers = workers
        self.leader_address = leader_address
        """Not empty: this one does not lead, and says who does."""
        self.externals: list[str] = []
        self.applied: list[ss.ApplyRequest] = []
        self.watchers = 0
        self.address = ""
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server(self, self._server)

    async def start(self) -> FakeScheduler:
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def stop(self) -> None:
        await self._server.stop(None)

    async def GetLeader(self, request: ss.GetLeaderRequest, context: Any) -> ss.GetLeaderResponse:
        fence = identity_pb2.Fence(epoch=1)
        return ss.GetLeaderResponse(
            is_leader=not self.leader_address, fence=fence, leader_address=self.leader_address or self.address
        )

    async def WatchCluster(
        self, request: ss.WatchClusterRequest, context: Any
    ) -> AsyncIterator[ss.WatchClusterResponse]:
        self.watchers += 1
        while True:
            yield self._view()
            await asyncio.sleep(LOOK_S)

    async def Apply(self, request: ss.ApplyRequest, context: Any) -> ss.ApplyResponse:
        if request.worker_id not in self.workers():
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such worker")
        repeated = any(earlier.action_id == request.action_id for earlier in self.applied)
        self.applied.append(request)
        return ss.ApplyResponse(applied=not repeated)

    def _not_here(self, *_: Any) -> Any:
        raise AssertionError("no scaler calls this")

    RouterSession = WorkerSession = ExplainRequest = _not_here  # type: ignore[assignment]

    def _view(self) -> ss.WatchClusterResponse:
        view = ss.WatchClusterResponse(fence=identity_pb2.Fence(epoch=1))
        drained = {request.worker_id for request in self.applied}
        for key in self.workers() + self.externals:
            worker = view.workers.add(model="llama")
            worker.identity.worker_id = key
            worker.readiness = capability_pb2.READINESS_DRAINING if key in drained else capability_pb2.READINESS_READY
            if key not in self.externals:
                worker.tags.update({"cell": "cell", "action_id": key.partition("-")[2]})
        return view
