"""Clients that cancel, resume elsewhere, or lose their stream."""

from __future__ import annotations

from virtual_client import Client
from virtual_process import SECOND
from virtual_strike import Strike, a_client, request


def resume_elsewhere(strike: Strike) -> bool:
    client = a_client(strike)
    if client is not None:
        strike.cell.resume(client, strike.chance.randrange(len(strike.cell.routers)))
    return client is not None


def two_resumes(strike: Strike) -> bool:
    client = a_client(strike)
    if client is not None:
        count = len(strike.cell.routers)
        first = strike.chance.randrange(count)
        strike.cell.resume(client, first)
        strike.cell.resume(client, (first + 1) % count)
    return client is not None


def stream_cut(strike: Strike) -> bool:
    """The older router hears from Redis who has the request, before or after its grace."""
    client = request(strike, 200)
    strike.soon(100_000, 300_000, lambda _: _cut_stream(strike, client))
    return False


def stream_cut_redis_away(strike: Strike) -> bool:
    """The older router hears nothing: its grace ends while the request goes on elsewhere."""
    strike.cell.take_redis_away(strike.chance.randrange(3 * SECOND, 6 * SECOND))
    return stream_cut(strike)


def _cut_stream(strike: Strike, client: Client) -> None:
    if client.ended is None:
        strike.cell.cut_stream(client, grace_us=strike.chance.randrange(500_000, SECOND))
        strike.land()


def cancel(strike: Strike) -> bool:
    client = a_client(strike)
    if client is not None:
        strike.cell.cancel(client)
    return client is not None


def cancel_storm(strike: Strike) -> bool:
    clients = strike.cell.live_clients()[::2]
    for client in clients:
        strike.cell.cancel(client)
    return bool(clients)
