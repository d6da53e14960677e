"""What a fault works with: the cell, its clients, and a seeded chance."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from chaos_cell import ChaosCell
from client_load import Load
from leadership import leader_of
from move_count import MoveCount
from orders import Orders

EFFECT_S = 15.0
"""A fault that has not shown by then has not happened."""


class Chaos:
    """What a fault works with."""

    def __init__(self, cell: ChaosCell, load: Load, orders: Orders, moves: MoveCount, seed: int) -> None:
        self.cell = cell
        self.load = load
        self.orders = orders
        self.moves = moves
        self.chance = random.Random(seed)
        self.company: list[asyncio.Task[None]] = []
        """Long requests that faults have begun to have somebody to hit."""

    def worker(self) -> str:
        return self.chance.choice(self.cell.workers)

    def router(self) -> str:
        return self.chance.choice(self.cell.routers)

    async def leader(self) -> str:
        return await leader_of(self.cell)

    async def pause(self, low_s: float, high_s: float) -> None:
        await asyncio.sleep(self.chance.uniform(low_s, high_s))


Fault = Callable[[Chaos], Awaitable[bool]]
"""Breaks something, waits as long as that takes, and leaves the cell able to heal. False = nothing was broken: what
should show of it (an exit status, a stopped process, a line in a log, data that was held) did not."""
