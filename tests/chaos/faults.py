"""Every row of the design's failure table as a fault that can be made on demand, by name."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from chaos import Fault
from client_faults import (
    cancel_storm,
    client_connection_cut,
    client_connection_cut_redis_away,
    orphan,
    slow_reader,
    two_resumes,
)  # fmt: skip
from move_faults import MOVE_FAULTS
from network_faults import (
    connections_reset,
    feed_held,
    redis_away_30_s,
    redis_reply_lost,
    redis_restarted_empty,
    redis_slow,
    scheduler_unheard,
    scheduler_unreachable,
    worker_unreachable,
)  # fmt: skip
from router_faults import ROUTER_POINTS, kill_router, kill_router_and_worker, router_dies_at
from scheduler_faults import kill_leader, placed_lost, run_delivered_placed_lost_leader_killed, run_lost, stop_leader
from worker_faults import (
    kill_engine,
    kill_worker,
    restart_worker,
    stop_engine,
    stop_replace_continue_worker,
    stop_worker,
)  # fmt: skip

FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill_worker, kill_engine, stop_engine, stop_worker, stop_replace_continue_worker, restart_worker,
        kill_leader, stop_leader, run_delivered_placed_lost_leader_killed, placed_lost, run_lost,
        kill_router, kill_router_and_worker, two_resumes, cancel_storm, orphan, slow_reader,
        client_connection_cut, client_connection_cut_redis_away,
        feed_held, worker_unreachable, scheduler_unreachable, scheduler_unheard, connections_reset,
        redis_reply_lost, redis_slow, redis_restarted_empty, redis_away_30_s,
        *(router_dies_at(point) for point in ROUTER_POINTS),
        *MOVE_FAULTS,
    )
}  # fmt: skip
RARE = {"redis_away_30_s": 0.002}
"""Share of all faults, where a fault takes too long to have its even part."""


def schedule(count: int, seed: int) -> list[str]:
    """`count` faults: each kind about as often as any other (RARE ones at least once from 100 on), shuffled."""
    chance = random.Random(seed)
    rare = [name for name, share in RARE.items() for _ in range(max(round(count * share), 1 if count >= 100 else 0))]
    common = [name for name in FAULTS if name not in RARE]
    chance.shuffle(common)
    names = [*rare, *(common[at % len(common)] for at in range(count - len(rare)))]
    chance.shuffle(names)
    return names


def endless(kinds: Sequence[str], seed: int) -> Iterator[str]:
    """All of them in random order, again and again."""
    chance, round_of = random.Random(seed), list(kinds)
    while True:
        chance.shuffle(round_of)
        yield from round_of
