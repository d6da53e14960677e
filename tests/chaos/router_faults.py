"""Routers that die, at any moment or at a chosen one."""

from __future__ import annotations

import asyncio
import contextlib

from chaos import Chaos, Fault

ROUTER_POINTS = (
    "validated", "recorded", "accepted", "submitted", "placed", "started", "first_token", "journaled", "finished",
    "closed",
)  # fmt: skip


async def kill_router(chaos: Chaos) -> None:
    await chaos.cell.respawn(chaos.router())


async def kill_router_and_worker(chaos: Chaos) -> None:
    router, worker = chaos.router(), chaos.worker()
    await asyncio.gather(chaos.cell.kill(router), chaos.cell.kill(worker))
    await asyncio.gather(chaos.cell.respawn(router), chaos.cell.respawn(worker))


def router_dies_at(point: str) -> Fault:
    async def fault(chaos: Chaos) -> None:
        name = chaos.router()
        await chaos.cell.respawn(name, faults=f"crash_after={point}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                await chaos.cell.children[name].wait()
        await chaos.cell.respawn(name)

    fault.__name__ = f"router_dies_at_{point}"
    return fault
