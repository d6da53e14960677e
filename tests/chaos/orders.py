"""What an operator says to the leader, and asks it: over one connection, for as long as that one leads."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from chaos_cell import ChaosCell
from leadership import leader_of

from hyperflexis.scheduler.v1 import scheduler_service_pb2 as wire
from hyperflexis.scheduler.v1 import scheduler_service_pb2_grpc
from hyperflexis_common.channel import open_channel

ANSWER_S = 2.0
SAYS_NO = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)
"""A leader's answer; anything else, and this may be none any more."""
PLACED = ("place", "adopt", "moved")


class Orders:
    """Use as `async with`. No answer is as good as a no: who needs more tries again."""

    def __init__(self, cell: ChaosCell) -> None:
        self._cell = cell
        self._channel: grpc.aio.Channel | None = None
        self._opened: list[grpc.aio.Channel] = []
        """Others may still wait for an answer on those that are given up."""
        self._finding = asyncio.Lock()

    async def __aenter__(self) -> Orders:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._opened:
            await channel.close()

    async def apply(self, **action: Any) -> bool:
        """False where nobody leads, or the leader says that this cannot be."""
        request = wire.ApplyRequest(action_id=secrets.token_hex(8), **action)
        reply = await self._ask(lambda stub: stub.Apply(request, timeout=ANSWER_S))
        return reply is not None and bool(reply.applied)

    async def migrate(self, request_id: str, worker_id: str) -> bool:
        """Has the move begun?"""
        return await self.apply(migrate=wire.MigrateRequest(request_id=request_id, target_worker_id=worker_id))

    async def worker_of(self, request_id: str) -> str:
        """Where it runs, as far as the leader knows."""
        request = wire.ExplainRequestRequest(request_id=request_id)
        reply = await self._ask(lambda stub: stub.ExplainRequest(request, timeout=ANSWER_S))
        decisions = [] if reply is None else [each for each in reply.decisions if each.kind in PLACED]
        return str(decisions[-1].worker_id) if decisions else ""

    async def _ask(self, question: Callable[[Any], Awaitable[Any]]) -> Any:
        async with self._finding:
            if self._channel is None:
                with contextlib.suppress(TimeoutError):
                    self._channel = open_channel(self._cell.scheduler_port(await leader_of(self._cell, ANSWER_S)))
                    self._opened.append(self._channel)
        channel = self._channel
        if channel is None:
            return None
        try:
            return await question(scheduler_service_pb2_grpc.SchedulerServiceStub(channel))
        except grpc.aio.AioRpcError as error:
            if error.code() not in SAYS_NO and self._channel is channel:
                self._channel = None
            return None
