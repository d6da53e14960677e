"""Whether caches still move, from every worker to every other, once all faults are over."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import permutations

from chaos import Chaos
from process_signs import until
from reading import Reading

LIMIT_S = 45.0
"""For all ways together. A move may take ten seconds, and one that fails may be tried again."""
HOP_S = 2.0
POLL_S = 0.02

Way = tuple[str, str]


async def unreached(chaos: Chaos) -> list[str]:
    """The ways on which nothing moves."""
    left = set(permutations(chaos.cell.workers, 2))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LIMIT_S):
            while left:
                async with chaos.load.request(chaos.load.longest_prompt(), "reach") as reading:
                    reader = asyncio.create_task(reading.read())
                    await _travel(chaos, reading, left)
                    await reader
    return [f"nothing moves from {source} to {target}" for source, target in sorted(left)]


async def _travel(chaos: Chaos, reading: Reading, left: set[Way]) -> None:
    """Over as many of the ways as it can before it ends."""
    await until(lambda: bool(reading.received), LIMIT_S)
    request_id, clock = reading.generation.request_id, asyncio.get_running_loop()
    while left and reading.generation.finished is None:
        here = await chaos.orders.worker_of(request_id)
        # By a way that is left, or to where one begins.
        there = next((target for source, target in left if source == here), next(iter(left))[0])
        if not await chaos.orders.migrate(request_id, there):
            await asyncio.sleep(POLL_S)
            continue
        until_s = clock.time() + HOP_S
        while clock.time() < until_s:
            if await chaos.orders.worker_of(request_id) == there:
                left.discard((here, there))
                break
            await asyncio.sleep(POLL_S)
