"""Requests that change workers while they run, and what breaks in the middle of it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio
from chaos import EFFECT_S, Chaos, Fault
from leadership import cluster_of
from scheduler_faults import kill_leader
from worker_faults import kill_engine, kill_worker, stop_engine, stop_worker

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as wire
from hyperflexis.scheduler.v1 import scheduler_service_pb2_grpc, worker_session_pb2
from hyperflexis_client import HyperFlexisError
from hyperflexis_common.channel import open_channel

ROLES = (capability_pb2.ROLE_MIXED, capability_pb2.ROLE_PREFILL, capability_pb2.ROLE_DECODE)
LONG_REQUESTS = 4
"""Beside the steady load, so that there is always somebody to move."""


async def move_requests(chaos: Chaos) -> bool:
    """Whoever runs is ordered elsewhere, again and again for a while."""
    return await _while_moving(chaos, _nothing_else)


async def flip_roles(chaos: Chaos) -> bool:
    """Roles change all the time, so that requests are handed off and sent away; in the end all do both again."""
    before = await _moves_done(chaos)
    _keep_company(chaos)
    until_s = time.monotonic() + chaos.chance.uniform(2.0, 5.0)
    while time.monotonic() < until_s:
        await _order(chaos, worker_id=chaos.worker(), set_role=_role(chaos.chance.choice(ROLES)))
        await chaos.pause(0.05, 0.4)
    flipped = await _moved_since(chaos, before)
    await _count(chaos, before)
    for name in chaos.cell.workers:
        await _certainly(chaos, worker_id=name, set_role=_role(ROLES[0]))
    return flipped


def while_moving(fault: Fault) -> Fault:
    """The fault in the middle of moves; it has landed where both were seen."""

    async def both(chaos: Chaos) -> bool:
        return await _while_moving(chaos, fault)

    both.__name__ = f"moving_{fault.__name__}"
    return both


MOVE_FAULTS = (
    move_requests,
    flip_roles,
    *(while_moving(fault) for fault in (kill_worker, stop_worker, kill_engine, stop_engine, kill_leader)),
)


async def _while_moving(chaos: Chaos, fault: Callable[[Chaos], Awaitable[bool]]) -> bool:
    before = await _moves_done(chaos)
    _keep_company(chaos)
    moving = asyncio.create_task(_move_forever(chaos))
    try:
        moved = await _moved_since(chaos, before)
        landed = await fault(chaos)
        await chaos.pause(0.5, 1.5)
    finally:
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)
    await _count(chaos, before)
    return moved and landed


async def _nothing_else(chaos: Chaos) -> bool:
    await chaos.pause(1.0, 3.0)
    return True


def _keep_company(chaos: Chaos) -> None:
    """So many long requests at once, whatever faults before this one have left running."""
    chaos.company = [task for task in chaos.company if not task.done()]
    while len(chaos.company) < LONG_REQUESTS:
        chaos.company.append(chaos.load.also(_long_request(chaos)))


async def _long_request(chaos: Chaos) -> None:
    async with chaos.load.request(chaos.load.longest_prompt()) as reading:
        await reading.read()


async def _move_forever(chaos: Chaos) -> None:
    while True:
        with contextlib.suppress(HyperFlexisError):  # the router may be the one that is broken
            for summary in await chaos.load.client.list_requests(limit=20):
                migrate = wire.MigrateRequest(request_id=summary.request_id, target_worker_id=chaos.worker())
                await _order(chaos, migrate=migrate)
        await asyncio.sleep(0.05)


def _role(role: capability_pb2.Role.ValueType) -> worker_session_pb2.SetRole:
    return worker_session_pb2.SetRole(role=role)


async def _order(chaos: Chaos, **action: Any) -> bool:
    """False where nobody leads, or the leader says that this cannot be."""
    request = wire.ApplyRequest(action_id=secrets.token_hex(8), **action)
    try:
        name = await chaos.leader()
        async with open_channel(chaos.cell.scheduler_port(name)) as channel:
            await scheduler_service_pb2_grpc.SchedulerServiceStub(channel).Apply(request, timeout=2.0)
    except (grpc.aio.AioRpcError, TimeoutError):
        return False
    return True


async def _certainly(chaos: Chaos, **action: Any) -> None:
    """Until it is done: what is left undone here would be a fault of its own."""
    async with asyncio.timeout(60):
        while not await _order(chaos, **action):
            await asyncio.sleep(0.2)


async def _moves_done(chaos: Chaos) -> tuple[int, int]:
    """By the leader of this epoch: it counts from its beginning."""
    view = await cluster_of(chaos.cell)
    return view.fence.epoch, view.moves.done


async def _count(chaos: Chaos, before: tuple[int, int]) -> None:
    """Those of a leader that has died since are not known."""
    epoch, done = await _moves_done(chaos)
    chaos.load.tally.moves += done - (before[1] if epoch == before[0] else 0)


async def _moved_since(chaos: Chaos, before: tuple[int, int]) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(EFFECT_S):
            while True:
                epoch, done = await _moves_done(chaos)
                if done > (before[1] if epoch == before[0] else 0):
                    return True
                await asyncio.sleep(0.1)
    return False
