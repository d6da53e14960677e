"""Connections that lag, break or work one way only; a Redis that is slow, away or empty."""

from __future__ import annotations

import asyncio
import signal

from chaos import Chaos


async def feed_held(chaos: Chaos) -> None:
    """One worker's tokens lag while the other feeds advance."""
    proxy = chaos.cell.proxies[chaos.worker()]
    proxy.hold("to_client")
    await chaos.pause(0.2, 5.0)
    proxy.release("to_client")


async def worker_unreachable(chaos: Chaos) -> None:
    """Routers' words do not reach a worker, its tokens reach them: cut one way, then broken."""
    proxy = chaos.cell.proxies[chaos.worker()]
    proxy.hold("to_server")
    await chaos.pause(0.5, 6.0)
    proxy.reset()
    proxy.release("to_server")


async def scheduler_unreachable(chaos: Chaos) -> None:
    """What the leader says arrives; what is said to it does not."""
    proxy = chaos.cell.proxies[await chaos.leader()]
    proxy.hold("to_server")
    await chaos.pause(0.5, 4.0)
    proxy.release("to_server")


async def scheduler_unheard(chaos: Chaos) -> None:
    proxy = chaos.cell.proxies[await chaos.leader()]
    proxy.hold("to_client")
    await chaos.pause(0.5, 4.0)
    proxy.release("to_client")


async def connections_reset(chaos: Chaos) -> None:
    for proxy in chaos.cell.proxies.values():
        proxy.reset()


async def redis_reply_lost(chaos: Chaos) -> None:
    for name in chaos.cell.routers:
        chaos.cell.signal(name, signal.SIGUSR1)


async def redis_slow(chaos: Chaos) -> None:
    chaos.cell.signal("redis", signal.SIGSTOP)
    await chaos.pause(0.3, 4.0)
    chaos.cell.signal("redis", signal.SIGCONT)


async def redis_away_30_s(chaos: Chaos) -> None:
    chaos.cell.signal("redis", signal.SIGSTOP)
    await asyncio.sleep(30)
    chaos.cell.signal("redis", signal.SIGCONT)


async def redis_restarted_empty(chaos: Chaos) -> None:
    await chaos.cell.respawn("redis")
