"""Connections that lag, break or work one way only; a Redis that is slow, away or empty."""

from __future__ import annotations

import asyncio
import signal

from chaos import EFFECT_S, Chaos
from process_signs import until
from tcp_proxy import TcpProxy, Way


async def _hold(chaos: Chaos, proxy: TcpProxy, way: Way, low_s: float, high_s: float) -> bool:
    """Holds one way; True once something had to wait there. The caller lets it go."""
    before = proxy.held[way]
    proxy.hold(way)
    met = await until(lambda: proxy.held[way] > before, EFFECT_S)
    await chaos.pause(low_s, high_s)
    return met


async def feed_held(chaos: Chaos) -> bool:
    """One worker's tokens lag while the other feeds advance."""
    proxy = chaos.cell.proxies[chaos.worker()]
    met = await _hold(chaos, proxy, "to_client", 0.2, 5.0)
    proxy.release("to_client")
    return met


async def worker_unreachable(chaos: Chaos) -> bool:
    """Routers' words do not reach a worker, its tokens reach them: cut one way, then broken."""
    proxy = chaos.cell.proxies[chaos.worker()]
    met = await _hold(chaos, proxy, "to_server", 0.5, 6.0)
    # Where it lasts long, gRPC's own keepalive has broken the connections before us.
    proxy.reset()
    proxy.release("to_server")
    return met


async def scheduler_unreachable(chaos: Chaos) -> bool:
    """What the leader says arrives; what is said to it does not."""
    proxy = chaos.cell.proxies[await chaos.leader()]
    met = await _hold(chaos, proxy, "to_server", 0.5, 4.0)
    proxy.release("to_server")
    return met


async def scheduler_unheard(chaos: Chaos) -> bool:
    proxy = chaos.cell.proxies[await chaos.leader()]
    met = await _hold(chaos, proxy, "to_client", 0.5, 4.0)
    proxy.release("to_client")
    return met


async def connections_reset(chaos: Chaos) -> bool:
    """Every connection between services, at once; clients keep theirs."""
    cell, broken = chaos.cell, 0
    for name in (*cell.schedulers, *cell.workers):
        before = cell.proxies[name].broken
        cell.proxies[name].reset()
        broken += cell.proxies[name].broken - before
    return broken > 0


async def redis_reply_lost(chaos: Chaos) -> bool:
    marks = {name: chaos.cell.mark(name) for name in chaos.cell.routers}
    for name in chaos.cell.routers:
        chaos.cell.signal(name, signal.SIGUSR1)
    seen = [mark.saw("dropped on purpose", "redis_reply", timeout_s=EFFECT_S) for mark in marks.values()]
    return all(await asyncio.gather(*seen))


async def redis_slow(chaos: Chaos) -> bool:
    frozen = await chaos.cell.freeze("redis")
    await chaos.pause(0.3, 4.0)
    return await chaos.cell.thaw("redis") and frozen


async def redis_away_30_s(chaos: Chaos) -> bool:
    """Long enough that it must show at the clients: some request is told that it is not durable."""
    tally = chaos.load.tally
    told = tally.not_durable
    with tally.silences.excused():
        frozen = await chaos.cell.freeze("redis")
        await asyncio.sleep(30)
        return await chaos.cell.thaw("redis") and frozen and tally.not_durable > told


async def redis_restarted_empty(chaos: Chaos) -> bool:
    return await chaos.cell.respawn("redis")
