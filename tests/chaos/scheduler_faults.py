"""Leaders that die, stop, or lose one message at the wrong moment."""

from __future__ import annotations

import asyncio
import signal

from chaos import Chaos


async def kill_leader(chaos: Chaos) -> None:
    await chaos.cell.respawn(await chaos.leader())


async def stop_leader(chaos: Chaos) -> None:
    """Long enough, sometimes, that the standby leads when it wakes."""
    name = await chaos.leader()
    chaos.cell.signal(name, signal.SIGSTOP)
    await chaos.pause(0.3, 6.0)
    chaos.cell.signal(name, signal.SIGCONT)


async def run_delivered_placed_lost_leader_killed(chaos: Chaos) -> None:
    name = await chaos.leader()
    chaos.cell.signal(name, signal.SIGUSR1)
    await asyncio.sleep(0.1)
    await chaos.cell.respawn(name)


async def placed_lost(chaos: Chaos) -> None:
    chaos.cell.signal(await chaos.leader(), signal.SIGUSR1)


async def run_lost(chaos: Chaos) -> None:
    chaos.cell.signal(await chaos.leader(), signal.SIGUSR2)
