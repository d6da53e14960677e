"""Every fault of a virtual cell by name, each aimed at something that is there, and an account of what they hit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from virtual_cell import VirtualCell
from virtual_client import Client
from virtual_process import SECOND
from virtual_strike import Strike, a_client, burst, busy_worker, company, fresh_request, request
from virtual_worker import Worker

from hyperflexis.common.v1 import capability_pb2

MESSAGES = (
    "placed", "queued", "lost", "run", "revoke", "drain", "registered",  # what the scheduler says
    "submit", "snapshot", "report", "cancel", "done",  # what it is told; cancel goes either way
    "start", "subscribe", "closed", "bind", "step", "gone",  # what routers and workers say to each other
)  # fmt: skip


ROLES = (capability_pb2.ROLE_MIXED, capability_pb2.ROLE_PREFILL, capability_pb2.ROLE_DECODE)

Fault = Callable[[Strike], bool]
"""True = it has landed; what lands later, if at all, says so itself."""

# --- processes -------------------------------------------------------------------------------------------


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
    for _ in range(24):
        strike.soon(0, 40_000, fresh_request)
    strike.soon(5_000, 20_000, lambda _: worker.engine.kill())
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


# --- networks --------------------------------------------------------------------------------------------


def break_links(strike: Strike) -> bool:
    return strike.cell.break_links(strike.chance.uniform(0.2, 1.0)) > 0


def break_all_links(strike: Strike) -> bool:
    return strike.cell.break_links(1.0) > 0


def break_all_links_later(strike: Strike) -> bool:
    strike.soon(100_000, 400_000, break_all_links)
    return False


def break_session(strike: Strike) -> bool:
    session = busy_worker(strike).session
    if session is not None:
        session.break_now()
    return session is not None


def hold_feed(strike: Strike) -> bool:
    return strike.cell.hold_feed(strike.chance.randrange(10_000, 6 * SECOND))


def cut(strike: Strike) -> bool:
    return strike.cell.cut_router_from_worker(strike.chance.randrange(100_000, 12 * SECOND))


# --- clients ---------------------------------------------------------------------------------------------


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


# --- revocations and drains ------------------------------------------------------------------------------


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


# --- moves -----------------------------------------------------------------------------------------------


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


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill_worker, kill_engine, kill_engine_under_load, hang_engine, stop_worker, stop_and_replace_worker,
        stop_and_replace_worker_late, kill_leader, kill_leader_unread, stop_leader, stop_and_usurp_leader, two_leaders,
        kill_router, kill_router_and_worker, break_links, hold_feed, cut,
        resume_elsewhere, two_resumes, stream_cut, stream_cut_redis_away, cancel, cancel_storm,
        drain, drain_and_kill, drain_and_break_links, drain_everybody, move, moves, flips,
    )
}  # fmt: skip
FAULTS |= {
    f"moves_and_{then.__name__}": partial(move_and, then)
    for then in (
        kill_worker, kill_engine, hang_engine, stop_worker, stop_and_replace_worker, kill_leader, kill_router,
        break_session, break_all_links, resume_elsewhere, cancel_storm, drain, flips,
    )
}  # fmt: skip
TRIGGERS: dict[str, Fault] = {
    "drop_lost": kill_worker,
    "drop_queued": drain_everybody,
    "drop_revoke": drain,
    "drop_drain": drain,
    "drop_registered": break_session,
    "drop_snapshot": break_session,
    "drop_cancel": cancel,
    "drop_subscribe": break_all_links_later,
    "drop_gone": kill_engine,
}
"""What makes a message come; all others come with any request, from its Submit to its Closed, or by themselves."""
NAMES = (*FAULTS, *(f"drop_{kind}" for kind in MESSAGES))


@dataclass
class Account:
    """`made`: faults that were tried. `landed`: those that broke something while requests were live."""

    strikes: list[Strike] = field(default_factory=list)

    @property
    def made(self) -> int:
        return len(self.strikes)

    @property
    def landed(self) -> int:
        return sum(strike.landed for strike in self.strikes)

    def make(self, cell: VirtualCell, name: str, chance: random.Random) -> None:
        strike = Strike(cell, chance)
        self.strikes.append(strike)
        if name in FAULTS:
            if FAULTS[name](strike):
                strike.land()
            return
        kind = name.removeprefix("drop_")
        company(strike)
        cell.on_drop[kind] = strike.land
        cell.drops[kind] += 1
        if name in TRIGGERS:
            TRIGGERS[name](strike)
