"""A peer that does not welcome the router is dialled again and again: no try leaves anything behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from router_fakes import WORKER
from router_rig import eventually

from hyperflexis.scheduler.v1 import scheduler_service_pb2_grpc
from hyperflexis.worker.v1 import worker_service_pb2_grpc
from hyperflexis_common.channel import SERVER_OPTIONS
from hyperflexis_common.clock import SystemClock
from hyperflexis_common.server import cancel_all
from hyperflexis_router.admission import InFlight
from hyperflexis_router.backoff import Backoff
from hyperflexis_router.core.router import RouterCore
from hyperflexis_router.faults import Faults
from hyperflexis_router.feeds import Feeds
from hyperflexis_router.scheduler_link import SchedulerLink
from hyperflexis_router.switchboard import Switchboard

NOBODY = "127.0.0.1:1"

Dial = Callable[[Switchboard, str], AbstractAsyncContextManager[None]]


class Unwelcoming(worker_service_pb2_grpc.WorkerServiceServicer, scheduler_service_pb2_grpc.SchedulerServiceServicer):
    """A worker that is not the one expected, and a scheduler that goes before it has welcomed."""

    async def TokenFeed(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await anext(request_iterator)
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not the worker expected")

    async def RouterSession(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await anext(request_iterator)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "no longer leads")


class Tries(Backoff):
    """Counts what came to nothing."""

    failed = 0

    def next_s(self) -> float:
        Tries.failed += 1
        return 0.01


@asynccontextmanager
async def feed(board: Switchboard, address: str) -> AsyncIterator[None]:
    feeds = Feeds(board)
    feeds.open(WORKER, address)
    yield
    await feeds.close_all()


@asynccontextmanager
async def session(board: Switchboard, address: str) -> AsyncIterator[None]:
    link = SchedulerLink([address], board, Faults(""))
    running = asyncio.create_task(link.run())
    yield
    await cancel_all(running)
    await link.close()


@pytest.fixture
async def unwelcoming() -> AsyncIterator[str]:
    server, peer = grpc.aio.server(options=SERVER_OPTIONS), Unwelcoming()
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(peer, server)
    scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server(peer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.mark.parametrize("there", [True, False], ids=["unwelcoming", "nobody"])
@pytest.mark.parametrize("dial", [feed, session])
async def test_tries_that_came_to_nothing_leave_nothing(
    dial: Dial, there: bool, unwelcoming: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No task, and nothing for the event loop to complain of when garbage is collected."""
    for module in ("feeds", "scheduler_link"):
        monkeypatch.setattr(f"hyperflexis_router.{module}.Backoff", Tries)
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
    board = Switchboard(RouterCore("router", 1), SystemClock(), InFlight(1, 1), Faults(""))
    tasks, failed = len(asyncio.all_tasks()), Tries.failed
    async with dial(board, unwelcoming if there else NOBODY):
        await eventually(lambda: Tries.failed >= failed + 5)
    gc.collect()
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks)
    assert not complaints
