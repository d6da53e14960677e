"""Workers, their engines, leaders and routers that die, hang, stop or have a double."""

from __future__ import annotations

from virtual_process import SECOND
from virtual_strike import Strike, busy_worker, strange_request


def kill_worker(strike: Strike) -> bool:
    name = busy_worker(strike).key.worker_id
    strike.cell.kill_worker(name, back_after_us=strike.chance.randrange(0, 3 * SECOND))
    return True


def kill_engine(strike: Strike) -> bool:
    return busy_worker(strike).engine.kill()


def kill_engine_under_load(strike: Strike) -> bool:
    """Requests arrive at the very time: some are given to a worker whose engine is dead, or loading."""
    worker = busy_worker(strike)
    worker.on_start_without_engine = strike.land
    dies_us = strike.chance.randrange(10_000, 20_000)
    for _ in range(36):
        strike.soon(dies_us - 10_000, dies_us + 5_000, strange_request)
    strike.soon(dies_us, dies_us + 1, lambda _: worker.engine.kill())
    return False


def hang_engine(strike: Strike) -> bool:
    busy_worker(strike).engine.hang(strike.chance.randrange(100_000, 8 * SECOND))
    return True


def stop_worker(strike: Strike) -> bool:
    name = busy_worker(strike).key.worker_id
    strike.cell.stop_worker(name, strike.chance.randrange(100_000, 8 * SECOND), replace=False)
    return True


def stop_and_replace_worker(strike: Strike) -> bool:
    """Another process comes while its life is still known."""
    name = busy_worker(strike).key.worker_id
    strike.cell.stop_worker(name, strike.chance.randrange(100_000, 4 * SECOND), replace=True)
    return True


def stop_and_replace_worker_late(strike: Strike) -> bool:
    """Its life was given up before another one came, so that nobody had to be told that it was replaced."""
    name = busy_worker(strike).key.worker_id
    strike.cell.stop_worker(name, strike.chance.randrange(8 * SECOND, 12 * SECOND), replace=True)
    return True


def kill_leader(strike: Strike) -> bool:
    there = strike.cell.leader is not None
    strike.cell.replace_leader(gap_us=strike.chance.randrange(0, 4 * SECOND))
    return there


def kill_leader_unread(strike: Strike) -> bool:
    """Redis does not tell the next one what this one leaves, until a moment later."""
    there = strike.cell.leader is not None
    strike.cell.replace_leader(gap_us=strike.chance.randrange(0, 4 * SECOND), blind=True)
    return there


def stop_leader(strike: Strike) -> bool:
    strike.cell.stop_leader(strike.chance.randrange(100_000, 5 * SECOND))
    return strike.cell.leader is not None


def stop_and_usurp_leader(strike: Strike) -> bool:
    strike.cell.leaders.stop_and_usurp(strike.chance.randrange(SECOND, 8 * SECOND))
    return strike.cell.leader is not None


def two_leaders(strike: Strike) -> bool:
    strike.cell.leaders.usurp(strike.chance.randrange(SECOND, 10 * SECOND), share=strike.chance.random())
    return len(strike.cell.leaders) > 1


def kill_router(strike: Strike) -> bool:
    """One with clients, if there is one."""
    routers = strike.cell.routers
    busy = [n for n, router in enumerate(routers) if any(c.router is router for c in strike.cell.live_clients())]
    strike.cell.kill_router(strike.chance.choice(busy or range(len(routers))))
    return True


def kill_router_and_worker(strike: Strike) -> bool:
    return kill_router(strike) and kill_worker(strike)
