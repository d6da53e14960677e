"""What two workers say to each other is broken off or held up, while everybody else reaches both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from chaos import Chaos
from tcp_dialler import Dialler
from tcp_proxy import TcpProxy, Way
from worker_faults import kill_engine

LEASE_S = 5.0

End = tuple[TcpProxy, Dialler]
"""The one before a worker, and the other worker, who dials it."""


async def workers_cut(chaos: Chaos) -> bool:
    """Broken off, and neither can dial the other for a while."""
    ends = _pair(chaos)
    before = sum(proxy.broken for proxy, _ in ends)
    for proxy, other in ends:
        proxy.refuse(other)
    await chaos.pause(0.5, LEASE_S + 3)
    for proxy, _ in ends:
        proxy.accept()
    return sum(proxy.broken for proxy, _ in ends) > before


async def workers_silent(chaos: Chaos) -> bool:
    """Held up, one way or both, and it comes later."""
    return await _silent(chaos, lambda: chaos.pause(0.5, LEASE_S + 3))


async def workers_silent_engine_killed(chaos: Chaos) -> bool:
    """What was meant for an engine, or comes from one, is there after its end, when the next one serves."""
    killed = False

    async def kill() -> None:
        nonlocal killed
        await chaos.pause(0.0, 1.0)
        killed = await kill_engine(chaos)
        await chaos.pause(0.5, LEASE_S)

    return await _silent(chaos, kill) and killed


async def _silent(chaos: Chaos, meanwhile: Callable[[], Awaitable[None]]) -> bool:
    """True where something had to wait."""
    choices: list[tuple[Way, ...]] = [("to_server",), ("to_client",), ("to_server", "to_client")]
    ways, ends = chaos.chance.choice(choices), _pair(chaos)
    before = sum(sum(proxy.held.values()) for proxy, _ in ends)
    for proxy, other in ends:
        for way in ways:
            proxy.hold(way, other)
    try:
        await meanwhile()
    finally:
        for proxy, _ in ends:
            for way in ways:
                proxy.release(way)
    return sum(sum(proxy.held.values()) for proxy, _ in ends) > before


def _pair(chaos: Chaos) -> list[End]:
    cell = chaos.cell
    one, other = chaos.chance.sample(cell.workers, 2)
    pids = [(one, cell.children[other].pid), (other, cell.children[one].pid)]
    return [(cell.proxies[name], Dialler(pid)) for name, pid in pids if pid is not None]
