"""Leaders that die, stop, or lose one message at the wrong moment."""

from __future__ import annotations

import asyncio
import signal

from chaos import EFFECT_S, Chaos


async def kill_leader(chaos: Chaos) -> bool:
    return await chaos.cell.respawn(await chaos.leader())


async def stop_leader(chaos: Chaos) -> bool:
    """Long enough, sometimes, that the standby leads when it wakes."""
    name = await chaos.leader()
    frozen = await chaos.cell.freeze(name)
    await chaos.pause(0.3, 6.0)
    return await chaos.cell.thaw(name) and frozen


async def run_delivered_placed_lost_leader_killed(chaos: Chaos) -> bool:
    name = await chaos.leader()
    lost = await _lost(chaos, name, signal.SIGUSR1, "placed")
    # The Run went out just before; another twentieth of a second and it is there.
    await asyncio.sleep(0.05)
    return await chaos.cell.respawn(name) and lost


async def placed_lost(chaos: Chaos) -> bool:
    return await _lost(chaos, await chaos.leader(), signal.SIGUSR1, "placed")


async def run_lost(chaos: Chaos) -> bool:
    return await _lost(chaos, await chaos.leader(), signal.SIGUSR2, "run")


async def _lost(chaos: Chaos, name: str, number: signal.Signals, message: str) -> bool:
    """The signal makes the leader swallow its next message of a kind, and its log says when it has."""
    mark = chaos.cell.mark(name)
    armed = chaos.cell.signal(name, number)
    return armed and await mark.saw("dropped on purpose", f'"{message}"', timeout_s=EFFECT_S)
