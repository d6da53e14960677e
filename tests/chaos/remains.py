"""What a cell still holds once everything has had its time: nothing, if it is in order."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass

from chaos_cell import ChaosCell
from leadership import cluster_of, present

from hyperflexis_client import AsyncClient

SETTLE_S = 45.0
"""Longest that something without an owner may live: detach grace 10 s, sessions, leases."""


@dataclass(frozen=True)
class Remains:
    """Each of them is damage. `live_requests`: the most that scheduler, workers or routers say they hold."""

    leaked_blocks: int = 0
    leaked_leases: int = 0
    leaked_quarantines: int = 0
    leaked_reservations: int = 0
    """The last three in blocks, as the engines' own books have them."""
    live_moves: int = 0
    live_requests: int = 0
    missing_workers: int = 0
    broken_ways: int = 0
    """From one worker to another, on which nothing moves."""

    def notes(self) -> list[str]:
        return [f"left over: {count} {name}" for name, count in asdict(self).items() if count]


async def wait_for_workers(cell: ChaosCell, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while len(present(await cluster_of(cell))) < len(cell.workers):
            await asyncio.sleep(0.2)


async def remains_of(cell: ChaosCell) -> Remains:
    """Waits for there to be none, as long as anything may take."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        view = await cluster_of(cell)
        pools = [worker.load.kv for worker in view.workers]
        loads = [worker.load for worker in view.workers]
        live = (view.active + view.held, sum(load.running + load.waiting for load in loads), await _at_routers(cell))
        found = Remains(
            leaked_blocks=sum(kv.total_blocks - kv.free_blocks for kv in pools),
            leaked_leases=sum(kv.leased_blocks for kv in pools),
            leaked_quarantines=sum(kv.quarantined_blocks for kv in pools),
            leaked_reservations=sum(kv.reserved_blocks for kv in pools),
            live_moves=sum(worker.moving_in + worker.moving_out for worker in view.workers),
            live_requests=max(live),
            missing_workers=len(set(cell.workers) - set(present(view))),
        )
        if found == Remains() or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.5)


async def _at_routers(cell: ChaosCell) -> int:
    held = 0
    for name in cell.routers:
        async with AsyncClient(cell.router_port(name)) as client:
            held += len(await client.list_requests(limit=1_000))
    return held
