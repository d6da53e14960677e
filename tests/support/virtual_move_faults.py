"""Requests that move with their caches, workers that change roles, and what breaks meanwhile."""

from __future__ import annotations

from functools import partial

from virtual_client import Client
from virtual_process import SECOND
from virtual_strike import Fault, Strike, fresh_request, request

from hyperflexis.common.v1 import capability_pb2

ROLES = (capability_pb2.ROLE_MIXED, capability_pb2.ROLE_PREFILL, capability_pb2.ROLE_DECODE)


def move(strike: Strike) -> bool:
    """One that decodes goes to another worker."""
    client = request(strike, 200)
    for at_us in (100_000, 300_000, 500_000):
        strike.soon(at_us, at_us + 50_000, partial(_move, client=client))
    return False


def moves(strike: Strike) -> bool:
    """Several at once, back and forth for a while."""
    clients = [request(strike, 200) for _ in range(4)]
    for at_us in range(100_000, 2 * SECOND, 50_000):
        strike.soon(at_us, at_us + 50_000, partial(_move, client=strike.chance.choice(clients)))
    return False


def flips(strike: Strike) -> bool:
    """Roles change all the time while requests come and decode."""
    for _ in range(6):
        strike.soon(0, SECOND, fresh_request)
    for at_us in range(0, 2 * SECOND, 100_000):
        strike.soon(at_us, at_us + 100_000, _flip)
    strike.soon(2_200_000, 2_300_000, _everybody_mixed)
    return False


def _flip(strike: Strike) -> None:
    name = strike.chance.choice(sorted(strike.cell.workers))
    if strike.cell.set_role(name, strike.chance.choice(ROLES)):
        strike.land()


def _everybody_mixed(strike: Strike) -> None:
    """So that what else happens finds workers that take anything."""
    for name in sorted(strike.cell.workers):
        strike.cell.set_role(name, ROLES[0])


def move_and(then: Fault, strike: Strike) -> bool:
    """What breaks in the middle of it."""
    moves(strike)
    strike.soon(100_000, 1_500_000, then)
    return False


def _move(strike: Strike, client: Client) -> None:
    """To whichever worker will have it."""
    names = sorted(strike.cell.workers)
    strike.chance.shuffle(names)
    if client.ended is None and any(strike.cell.migrate(client, name) for name in names):
        strike.land()
