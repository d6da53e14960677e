"""SchedulerService over gRPC: translates streams and calls into events of the core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import structlog

from hyperflexis.scheduler.v1 import (
    router_session_pb2,
    scheduler_service_pb2,
    scheduler_service_pb2_grpc,
    worker_session_pb2,
)
from hyperflexis_common.clock import Clock
from hyperflexis_common.first_message import FIRST_MESSAGE_S
from hyperflexis_common.server import cancel_all
from hyperflexis_scheduler.core.actions import Outcome
from hyperflexis_scheduler.core.effects import Effect
from hyperflexis_scheduler.desk import Desk, Session
from hyperflexis_scheduler.leadership import Leadership
from hyperflexis_scheduler.metrics import Metrics

log = structlog.get_logger(__name__)

WATCH_EVERY_S = 1.0
WATCH_LOOK_S = 0.05
"""A watcher hears of a change this late at most, and not more often."""

_STATUS = {
    Outcome.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Outcome.STALE_FENCE: grpc.StatusCode.FAILED_PRECONDITION,
    Outcome.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Outcome.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Outcome.IMPOSSIBLE: grpc.StatusCode.FAILED_PRECONDITION,
}


class SchedulerService(scheduler_service_pb2_grpc.SchedulerServiceServicer):
    def __init__(self, desk: Desk, leadership: Leadership, clock: Clock, metrics: Metrics) -> None:
        self._desk = desk
        self._leadership = leadership
        self._clock = clock
        self._metrics = metrics

    async def RouterSession(
        self, request_iterator: AsyncIterator[router_session_pb2.RouterSessionRequest], context: Any
    ) -> AsyncIterator[router_session_pb2.RouterSessionResponse]:
        core = self._desk.core
        first = await self._first(request_iterator, "hello", context)
        events = (core.router_opened, core.router_message, core.router_closed)
        async for message in self._session(request_iterator, context, first.hello, *events):
            yield message

    async def WorkerSession(
        self, request_iterator: AsyncIterator[worker_session_pb2.WorkerSessionRequest], context: Any
    ) -> AsyncIterator[worker_session_pb2.WorkerSessionResponse]:
        core = self._desk.core
        first = await self._first(request_iterator, "register", context)
        events = (core.worker_opened, core.worker_message, core.worker_closed)
        async for message in self._session(request_iterator, context, first.register, *events):
            yield message

    async def WatchCluster(
        self, request: scheduler_service_pb2.WatchClusterRequest, context: Any
    ) -> AsyncIterator[scheduler_service_pb2.WatchClusterResponse]:
        while True:
            await self._require_leader(context)
            cell = self._desk.core.cell
            assert cell is not None
            version = cell.fleet.version
            yield self._desk.core.cluster(self._clock.now_us())
            until_us = self._clock.now_us() + int(WATCH_EVERY_S * 1e6)
            while self._clock.now_us() < until_us:
                await asyncio.sleep(WATCH_LOOK_S)
                if self._desk.core.cell is not cell or cell.fleet.version != version:
                    break

    async def Apply(
        self, request: scheduler_service_pb2.ApplyRequest, context: Any
    ) -> scheduler_service_pb2.ApplyResponse:
        await self._require_leader(context)
        result, effects = self._desk.core.apply(request, self._clock.now_us())
        self._desk.perform(effects)
        if result.outcome in _STATUS:
            await context.abort(_STATUS[result.outcome], result.message)
        return scheduler_service_pb2.ApplyResponse(applied=result.outcome is Outcome.APPLIED)

    async def GetLeader(
        self, request: scheduler_service_pb2.GetLeaderRequest, context: Any
    ) -> scheduler_service_pb2.GetLeaderResponse:
        cell = self._desk.core.cell
        return scheduler_service_pb2.GetLeaderResponse(
            is_leader=self._leadership.election.leading,
            fence=self._leadership.fence(),
            leader_address=self._leadership.leader_address(),
            workers=len(cell.fleet.by_id) if cell else 0,
            routers=len(cell.routers.by_session) if cell else 0,
        )

    async def ExplainRequest(
        self, request: scheduler_service_pb2.ExplainRequestRequest, context: Any
    ) -> scheduler_service_pb2.ExplainRequestResponse:
        await self._require_leader(context)
        decisions = self._desk.core.explain(request.request_id, self._clock.now_us())
        if not decisions:
            message = f"request {request.request_id!r} is unknown, or ended too long ago"
            await context.abort(grpc.StatusCode.NOT_FOUND, message)
        return scheduler_service_pb2.ExplainRequestResponse(decisions=decisions)

    async def _session(
        self,
        requests: AsyncIterator[Any],
        context: Any,
        hello: Any,
        opened: Callable[..., list[Effect]],
        message: Callable[..., list[Effect]],
        closed: Callable[..., list[Effect]],
    ) -> AsyncIterator[Any]:
        """One stream from its first message to its end."""
        await self._leadership.certain()
        number, session = self._desk.open()
        reader = None
        try:
            self._desk.do(opened, number, hello)
            reader = asyncio.create_task(self._read(requests, number, session, message), name=f"session {number}")
            async for response in session.outbox:
                yield response
            if session.reason:
                code = grpc.StatusCode.FAILED_PRECONDITION if session.permanent else grpc.StatusCode.UNAVAILABLE
                await context.abort(code, session.reason)
        finally:
            self._desk.forget(number)
            self._desk.do(closed, number)
            await cancel_all(reader)

    async def _read(
        self, requests: AsyncIterator[Any], number: int, session: Session, message: Callable[..., list[Effect]]
    ) -> None:
        try:
            while (request := await _next(requests)) is not None and not session.outbox.closed:
                await self._leadership.certain()
                with self._metrics.timed(request.WhichOneof("message")):
                    self._desk.do(message, number, request)
        except Exception:
            log.exception("session failed", session=number)
            session.end("internal error; the scheduler's log says more", permanent=False)
        finally:
            session.outbox.close()

    async def _first(self, requests: AsyncIterator[Any], kind: str, context: Any) -> Any:
        try:
            async with asyncio.timeout(FIRST_MESSAGE_S):
                first = await _next(requests)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no {kind} came within {FIRST_MESSAGE_S:g} s")
        if first is None or first.WhichOneof("message") != kind:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the first message must be {kind}")
        return first

    async def _require_leader(self, context: Any) -> None:
        await self._leadership.certain()
        if self._desk.core.cell is None:
            address = self._leadership.leader_address()
            where = f"the leader is at {address}" if address else "no leader is known"
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"this scheduler does not lead; {where}")


async def _next(requests: AsyncIterator[Any]) -> Any | None:
    """The next message; None where the stream has ended, however it did."""
    try:
        return await anext(requests, None)
    except (grpc.RpcError, grpc.aio.BaseError):
        return None
