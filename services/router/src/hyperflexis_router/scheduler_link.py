"""The session with the scheduler that leads: finds it, says hello, and again whenever it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc.aio
import structlog

from hyperflexis.scheduler.v1 import router_session_pb2, scheduler_service_pb2, scheduler_service_pb2_grpc
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.channel import open_channel
from hyperflexis_common.outbox import Outbox, OutboxFull
from hyperflexis_common.server import cancel_all
from hyperflexis_router.backoff import Backoff
from hyperflexis_router.faults import Faults
from hyperflexis_router.switchboard import Switchboard

log = structlog.get_logger(__name__)

HELLO_TIMEOUT_S = 2.0
"""A scheduler that has not welcomed by then is not the leader."""


class SchedulerLink:
    """At most one session at a time. `run` until cancelled."""

    def __init__(self, addresses: Sequence[str], board: Switchboard, faults: Faults) -> None:
        self._addresses = list(addresses)
        self._board = board
        self._faults = faults
        self._outbox: Outbox[router_session_pb2.RouterSessionRequest] | None = None
        self._session: asyncio.Task[str] | None = None
        self._stub: scheduler_service_pb2_grpc.SchedulerServiceAsyncStub | None = None

    def send(self, message: router_session_pb2.RouterSessionRequest) -> None:
        if self._outbox is None:
            return
        try:
            self._outbox.put(message)
        except OutboxFull:
            self.drop()

    def drop(self) -> None:
        """Ends the session; the leader is looked for again."""
        if self._session is not None:
            self._session.cancel()

    async def explain(self, request_id: str, timeout_s: float) -> scheduler_service_pb2.ExplainRequestResponse | None:
        """Decisions taken for a request; None where no scheduler answers."""
        if self._stub is None:
            return None
        request = scheduler_service_pb2.ExplainRequestRequest(request_id=request_id)
        try:
            return await self._stub.ExplainRequest(request, timeout=timeout_s)
        except grpc.aio.AioRpcError:
            return None

    async def run(self) -> None:
        backoff = Backoff()
        turn, hint = 0, ""
        while True:
            address = hint or self._addresses[turn % len(self._addresses)]
            if not hint:
                turn += 1
            self._session = asyncio.create_task(self._talk(address, backoff))
            try:
                hint = await self._session
            except asyncio.CancelledError:
                if (current := asyncio.current_task()) is not None and current.cancelling():
                    self._session.cancel()
                    raise
                hint = ""
            except grpc.aio.AioRpcError as error:
                log.info("scheduler session ended", address=address, code=error.code().name)
                hint = ""
            await asyncio.sleep(backoff.next_s())

    async def _talk(self, address: str, backoff: Backoff) -> str:
        """One session, from hello to its end. Returns the leader's address where this one does not lead."""
        core = self._board.core
        outbox: Outbox[router_session_pb2.RouterSessionRequest] = Outbox()
        hello = router_session_pb2.RouterHello(
            router_id=core.router_id,
            incarnation=core.incarnation,
            protocol_version=PROTOCOL_VERSION,
            highest_fence=core.highest_fence,
        )
        outbox.put(router_session_pb2.RouterSessionRequest(hello=hello))
        async with open_channel(address) as channel:
            stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
            call = stub.RouterSession(aiter(outbox))
            try:
                return await self._listen(address, aiter(call), outbox, stub, backoff)
            finally:
                outbox.close()
                call.cancel()

    async def _listen(
        self,
        address: str,
        messages: AsyncIterator[router_session_pb2.RouterSessionResponse],
        outbox: Outbox[router_session_pb2.RouterSessionRequest],
        stub: scheduler_service_pb2_grpc.SchedulerServiceAsyncStub,
        backoff: Backoff,
    ) -> str:
        board = self._board
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await anext(messages, None)
        except TimeoutError:
            log.info("scheduler does not answer", address=address)
            return ""
        if first is None:
            return ""
        if first.HasField("not_leader"):
            leader = first.not_leader.leader_address
            return leader if leader != address else ""
        if not first.HasField("welcome") or first.epoch < board.core.highest_fence.epoch:
            return ""
        board.apply(board.core.scheduler_message(first, board.clock.now_us()))
        self._outbox, self._stub = outbox, stub
        backoff.succeeded()
        log.info("scheduler session open", address=address, epoch=first.epoch)
        try:
            board.apply(board.core.scheduler_opened(board.clock.now_us()))
            async for message in messages:
                board.apply(board.core.scheduler_message(message, board.clock.now_us()))
                if message.HasField("placed"):
                    self._faults.passed("placed")
        finally:
            self._outbox = self._stub = None
            board.apply(board.core.scheduler_closed(board.clock.now_us()))
        return ""

    async def close(self) -> None:
        await cancel_all(self._session)
