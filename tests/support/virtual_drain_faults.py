"""Drains, and what breaks while the requests that they revoke are on their way."""

from __future__ import annotations

from virtual_network_faults import break_all_links
from virtual_process import SECOND
from virtual_strike import Strike, burst, fresh_request
from virtual_worker import Worker


def drain(strike: Strike) -> bool:
    """With more requests than run at once, so that there are some to revoke."""
    burst(strike)
    strike.soon(2_000, 30_000, _drain_one)
    return False


def drain_and_kill(strike: Strike) -> bool:
    """It dies with the revocations on their way."""
    burst(strike)
    strike.soon(2_000, 30_000, lambda _: strike.cell.kill_worker(_drain_one(strike).key.worker_id))
    return False


def drain_and_break_links(strike: Strike) -> bool:
    """The answers to the revocations are lost with the sessions."""
    drain(strike)
    strike.soon(30_000, 130_000, break_all_links)
    return False


def drain_everybody(strike: Strike) -> bool:
    """Nobody may be given work: what comes is held."""
    ordered = [strike.cell.leaders.drain(worker, SECOND) for _, worker in sorted(strike.cell.workers.items())]
    strike.soon(100_000, 300_000, fresh_request)
    return any(ordered)


def _drain_one(strike: Strike) -> Worker:
    """The one that has most to give back."""
    leader = strike.cell.leader
    workers = [worker for _, worker in sorted(strike.cell.workers.items())]
    worker = max(workers, key=lambda w: leader.revocable(w.key) if leader is not None else 0)
    if strike.cell.leaders.drain(worker, strike.chance.randrange(SECOND, 3 * SECOND)):
        strike.land()
    return worker
