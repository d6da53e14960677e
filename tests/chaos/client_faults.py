"""Clients that leave, cancel, resume twice, read slowly or lose the network to their router."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from chaos import EFFECT_S, Chaos
from process_signs import until
from reading import Reading
from tcp_proxy import TcpProxy

from hyperflexis_client import Aborted, AsyncClient, Delta, NotFound

STORM = 20
ORPHANS = 3
SHORT_GRACE_S = 3.0


async def two_resumes(chaos: Chaos) -> bool:
    """A client leaves its stream; two others resume it on two routers at once. One of them gets every token."""
    load = chaos.load
    async with load.request(load.long_prompt(), "two_resumes") as reading:
        await reading.read(tokens=2)
        if reading.generation.finished is not None:
            return False
        await reading.generation.aclose()
        resumes = (_resume(target, reading) for target in chaos.cell.router_addresses())
        ends = await asyncio.gather(*resumes, return_exceptions=True)
        load.tally.resumed += 1
        load.tally.spliced += sum(isinstance(t, tuple) and not _begins(reading, t) for t in ends)
        errors = [end for end in ends if isinstance(end, BaseException)]
        if errors or reading.prompt.reference not in ends:
            reading.failed(f"nobody got all of it: {ends}")
        else:
            reading.finished()
        return True
    return False


async def _resume(target: str, older: Reading) -> tuple[int, ...]:
    async with AsyncClient(target) as client:
        tokens = list(older.received)
        request_id = older.generation.request_id
        generation = client.resume(request_id, next_index=len(tokens), tail=tokens, timeout_s=60)
        # What the loser is told; or that a Redis which has just restarted knows nothing of the request yet.
        with contextlib.suppress(Aborted, NotFound):
            async for event in generation:
                if isinstance(event, Delta):
                    tokens += event.token_ids
        return tuple(tokens)


def _begins(reading: Reading, tokens: tuple[int, ...]) -> bool:
    return tokens == reading.prompt.reference[: len(tokens)]


async def cancel_storm(chaos: Chaos) -> bool:
    """Twenty requests, cancelled at once or a little later: some before their Run is there."""
    load, cancelled = chaos.load, 0

    async def cancel_one(delay_s: float) -> None:
        nonlocal cancelled
        async with load.request(load.long_prompt(), "cancel_storm") as reading:
            async for _ in reading.events():
                break
            await asyncio.sleep(delay_s)
            await reading.generation.aclose()
            if await load.client.cancel(reading.generation.request_id):
                cancelled += 1
            reading.cancelled()

    delays_s = [chaos.chance.choice([0.0, 0.0, 0.01, 0.1]) for _ in range(STORM)]
    await asyncio.gather(*(load.also(cancel_one(delay_s)) for delay_s in delays_s))
    return cancelled >= STORM // 2


async def orphan(chaos: Chaos) -> bool:
    """Clients that leave and never come back: their requests must end with their grace (or else are left over)."""
    load, left = chaos.load, 0

    async def leave(grace_ms: int) -> None:
        nonlocal left
        async with load.request(load.long_prompt(), "orphan", detach_grace_ms=grace_ms) as reading:
            await reading.read(tokens=1)
            if reading.generation.finished is None:
                await reading.generation.aclose()
                left += 1
                reading.cancelled()

    await asyncio.gather(*(load.also(leave(chaos.chance.choice([0, 500]))) for _ in range(ORPHANS)))
    return left > 0


async def slow_reader(chaos: Chaos) -> bool:
    reading = chaos.load.request(chaos.load.long_prompt(), "slow_reader")

    async def read() -> None:
        async with reading:
            await reading.read(pause_s=0.3)

    chaos.load.also(read())
    return await until(lambda: reading.deltas >= 3, EFFECT_S) and not reading.ended


async def client_connection_cut(chaos: Chaos) -> bool:
    """The network between the clients and one router breaks, the router lives: its streams go on at the other."""
    async with _one_more(chaos, "client_connection_cut", 10.0) as cut:
        return cut.begun and await cut.make()


async def client_connection_cut_redis_away(chaos: Chaos) -> bool:
    """The same, and the older router cannot hear of it: its grace ends while the stream goes on elsewhere."""
    async with _one_more(chaos, "client_connection_cut_redis_away", SHORT_GRACE_S) as cut:
        frozen = cut.begun and await chaos.cell.freeze("redis")
        try:
            await chaos.pause(0.3, 0.6)
            return frozen and await cut.make(stay_s=SHORT_GRACE_S + 1.0)
        finally:
            await chaos.cell.thaw("redis")


@dataclass
class _Cut:
    """A stream of its own among the others that are cut, and what breaks it."""

    proxy: TcpProxy
    reading: Reading
    begun: bool

    async def make(self, stay_s: float = 0.0) -> bool:
        """Waits until the stream has gone on, and at least `stay_s`; True if it had to go on."""
        reading, loop = self.reading, asyncio.get_running_loop()
        stay_until = loop.time() + stay_s
        self.proxy.refuse()
        await until(lambda: reading.generation.reconnections > 0 or reading.ended, EFFECT_S)
        had = len(reading.received)  # more can only come from another router
        went_on = await until(lambda: len(reading.received) > had or reading.ended, EFFECT_S)
        await asyncio.sleep(stay_until - loop.time())
        return went_on and len(reading.received) < len(reading.prompt.reference)


@contextlib.asynccontextmanager
async def _one_more(chaos: Chaos, fault: str, grace_s: float) -> AsyncIterator[_Cut]:
    name, load = chaos.router(), chaos.load
    proxy = chaos.cell.proxies[name]
    others = [chaos.cell.proxies[other].address for other in chaos.cell.routers if other != name]
    client = AsyncClient([proxy.address, *others])
    reading = load.request(load.longest_prompt(), fault, client=client, detach_grace_ms=int(grace_s * 1_000))

    async def read() -> None:
        async with client, reading:
            await reading.read()

    load.also(read())
    begun = await until(lambda: bool(reading.received) or reading.ended, EFFECT_S) and not reading.ended
    try:
        yield _Cut(proxy, reading, begun)
    finally:
        proxy.accept()
