"""Requests that change workers while they run, and what breaks in the middle of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from chaos import EFFECT_S, Chaos, Fault
from peer_faults import workers_cut, workers_silent, workers_silent_engine_killed
from process_signs import until
from scheduler_faults import kill_leader
from worker_faults import kill_engine, kill_worker, restart_worker, stop_engine, stop_worker

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_client import HyperFlexisError

ROLES = (capability_pb2.ROLE_MIXED, capability_pb2.ROLE_PREFILL, capability_pb2.ROLE_DECODE)
LONG_REQUESTS = 4
"""Beside the steady load, so that there is always somebody to move."""


async def move_requests(chaos: Chaos) -> bool:
    """Whoever runs is ordered elsewhere, again and again for a while."""
    return await _while_moving(chaos, _nothing_else)


async def flip_roles(chaos: Chaos) -> bool:
    """Roles change all the time, so that requests are handed off and sent away; in the end all do both again."""
    before = chaos.moves.done["hand_offs"]
    _keep_company(chaos)
    until_s = time.monotonic() + chaos.chance.uniform(2.0, 5.0)
    roles = dict.fromkeys(chaos.cell.workers, ROLES[0])
    while time.monotonic() < until_s:
        name, role = chaos.worker(), chaos.chance.choice(ROLES)
        if await chaos.orders.apply(worker_id=name, set_role=_role(role)) and roles[name] != role:
            roles[name] = role
            chaos.load.tally.flips += 1
        await chaos.pause(0.05, 0.4)
    flipped = await until(lambda: chaos.moves.done["hand_offs"] > before, EFFECT_S)
    for name in chaos.cell.workers:
        await _certainly(chaos, worker_id=name, set_role=_role(ROLES[0]))
        chaos.load.tally.flips += roles[name] != ROLES[0]
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
    *map(while_moving, (kill_worker, stop_worker, restart_worker, kill_engine, stop_engine, kill_leader)),
    *map(while_moving, (workers_cut, workers_silent, workers_silent_engine_killed)),
)


async def _while_moving(chaos: Chaos, fault: Callable[[Chaos], Awaitable[bool]]) -> bool:
    before = chaos.moves.done.total()
    _keep_company(chaos)
    moving = asyncio.create_task(_move_forever(chaos))
    try:
        moved = await until(lambda: chaos.moves.done.total() > before, EFFECT_S)
        landed = await fault(chaos)
        await chaos.pause(0.5, 1.5)
    finally:
        moving.cancel()
        await asyncio.gather(moving, return_exceptions=True)
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
            live = [summary.request_id for summary in await chaos.load.client.list_requests(limit=20)]
            await asyncio.gather(*(chaos.orders.migrate(each, chaos.worker()) for each in live))
        await asyncio.sleep(0.05)


def _role(role: capability_pb2.Role.ValueType) -> worker_session_pb2.SetRole:
    return worker_session_pb2.SetRole(role=role)


async def _certainly(chaos: Chaos, **action: Any) -> None:
    """Until it is done: what is left undone here would be a fault of its own."""
    async with asyncio.timeout(60):
        while not await chaos.orders.apply(**action):
            await asyncio.sleep(0.2)
