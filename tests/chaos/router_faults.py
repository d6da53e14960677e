"""Routers that die, at any moment or at a chosen one."""

from __future__ import annotations

import asyncio

from chaos import EFFECT_S, Chaos, Fault
from process_signs import until

from hyperflexis_cli.child import StackError

ROUTER_POINTS = (
    "validated", "recorded", "accepted", "submitted", "placed", "started", "first_token", "journaled", "finished",
    "closed",
)  # fmt: skip
CRASHED = "exited 137"
"""What a router leaves that has died at its point."""


async def kill_router(chaos: Chaos) -> bool:
    return await chaos.cell.respawn(chaos.router())


async def kill_router_and_worker(chaos: Chaos) -> bool:
    names = [chaos.router(), chaos.worker()]
    killed = await asyncio.gather(*(chaos.cell.kill(name) for name in names))
    await asyncio.gather(*(chaos.cell.respawn(name) for name in names))
    return all(killed)


def router_dies_at(point: str) -> Fault:
    async def fault(chaos: Chaos) -> bool:
        name = chaos.router()
        try:
            await chaos.cell.respawn(name, faults=f"crash_after={point}")
        except StackError:
            if chaos.cell.children[name].state != CRASHED:  # else it was there before we could see it ready
                raise
        child = chaos.cell.children[name]
        await until(lambda: not child.running, EFFECT_S)
        crashed = child.state == CRASHED
        await chaos.cell.respawn(name)
        return crashed

    fault.__name__ = f"router_dies_at_{point}"
    return fault
