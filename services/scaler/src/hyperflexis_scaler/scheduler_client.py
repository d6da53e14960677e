"""The scheduler's leader, wherever it is: watched, and asked to drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import grpc.aio
import structlog

from hyperflexis.common.v1 import identity_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2, scheduler_service_pb2_grpc, worker_session_pb2
from hyperflexis_common.channel import open_channel
from hyperflexis_scaler.core.action import Action, Outcome

log = structlog.get_logger(__name__)

PROBE_S = 1.0
SILENCE_S = 4.0
"""The leader speaks every second."""
RETRY_S = 0.5
APPLY_S = 1.0


class SchedulerClient:
    """Follows the leader over `schedulers`; every view of the cluster goes to `on_view`."""

    def __init__(
        self,
        schedulers: Sequence[str],
        on_view: Callable[[scheduler_service_pb2.WatchClusterResponse], None],
    ) -> None:
        self._schedulers = tuple(schedulers)
        self._on_view = on_view
        self._stub: scheduler_service_pb2_grpc.SchedulerServiceAsyncStub | None = None

    async def watch(self) -> None:
        """Watches until cancelled."""
        while True:
            address = await self._find_leader()
            if address:
                await self._watch(address)
            await asyncio.sleep(RETRY_S)

    async def drain(self, action: Action, fence: identity_pb2.Fence) -> tuple[Outcome, str]:
        """Drains one worker; repeats under one action_id are one drain."""
        if self._stub is None:
            return Outcome.SKIPPED, "no scheduler leads"
        request = scheduler_service_pb2.ApplyRequest(
            action_id=action.action_id,
            scaler_fence=fence,
            worker_id=action.instance_id,
            drain=worker_session_pb2.Drain(reason=action.reason),
        )
        try:
            await self._stub.Apply(request, timeout=APPLY_S)
        except grpc.aio.AioRpcError as error:
            missing = error.code() is grpc.StatusCode.NOT_FOUND
            return (Outcome.MISSING if missing else Outcome.UNKNOWN), f"{error.code().name}: {error.details()}"
        return Outcome.DONE, ""

    async def _find_leader(self) -> str:
        """Address of the leader with the highest epoch; empty = none answers."""
        waiting, asked = list(self._schedulers), set[str]()
        leaders: list[tuple[int, str]] = []
        while waiting:
            answers = await asyncio.gather(*(self._probe(address) for address in waiting))
            asked.update(waiting)
            leaders += [
                (answer.fence.epoch, address)
                for address, answer in zip(waiting, answers, strict=True)
                if answer is not None and answer.is_leader
            ]
            named = {answer.leader_address for answer in answers if answer is not None} - {""}
            # One hop: whoever a scheduler names is asked itself, but not whom that one names in turn.
            waiting = [] if leaders or len(asked) > len(self._schedulers) else sorted(named - asked)
        return max(leaders)[1] if leaders else ""

    async def _probe(self, address: str) -> scheduler_service_pb2.GetLeaderResponse | None:
        async with open_channel(address) as channel:
            stub: scheduler_service_pb2_grpc.SchedulerServiceAsyncStub
            stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
            try:
                return await stub.GetLeader(scheduler_service_pb2.GetLeaderRequest(), timeout=PROBE_S)
            except grpc.aio.AioRpcError:
                return None

    async def _watch(self, address: str) -> None:
        """Watches one scheduler until it fails, falls silent, or ceases to lead."""
        async with open_channel(address) as channel:
            stub: scheduler_service_pb2_grpc.SchedulerServiceAsyncStub
            stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
            call = stub.WatchCluster(scheduler_service_pb2.WatchClusterRequest())
            try:
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        view = await call.read()
                    if not isinstance(view, scheduler_service_pb2.WatchClusterResponse):
                        return
                    if self._stub is None:
                        log.info("watching the cluster", scheduler=address, epoch=view.fence.epoch)
                    self._stub = stub
                    self._on_view(view)
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                log.info("lost the scheduler", scheduler=address, error=type(error).__name__)
            finally:
                self._stub = None
                call.cancel()
