"""Any interleaving of deliveries and faults gives every client exactly its reference stream (docs/protocol.md)."""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtual_cell import VirtualCell
from virtual_client import Client
from virtual_process import SECOND

from hyperflexis.common.v1 import sampling_pb2

DROPPABLE = (
    "placed",
    "run",
    "start",
    "step",
    "bind",
    "lost",
    "submit",
    "snapshot",
    "report",
    "cancel",
    "closed",
    "done",
)

FAULTS = (
    "kill_worker",
    "kill_engine",
    "stop_worker",
    "stop_and_replace_worker",
    "kill_leader",
    "kill_leader_with_redis_away",
    "stop_leader",
    "kill_router",
    "kill_router_and_worker",
    "break_links",
    "hold_feed",
    "cut",
    "resume_elsewhere",
    "two_resumes",
    "resume_unnoticed",
    "cancel",
    "cancel_storm",
    *(f"drop_{kind}" for kind in DROPPABLE),
)


def unfinished(cell: VirtualCell) -> list[Client]:
    return [c for c in cell.clients.values() if c.ended is None and not c.cancelled]


def inject(cell: VirtualCell, fault: str, chance: random.Random) -> None:
    worker = chance.choice(sorted(cell.workers))
    router = chance.randrange(len(cell.routers))
    clients = unfinished(cell)
    if fault.startswith("drop_"):
        cell.drops[fault.removeprefix("drop_")] = 1
    elif fault == "kill_worker":
        cell.kill_worker(worker, back_after_us=chance.randrange(0, 3 * SECOND))
    elif fault == "kill_engine":
        cell.workers[worker].deliver(cell.workers[worker].kill_engine)
    elif fault == "stop_worker":
        cell.stop_worker(worker, chance.randrange(100_000, 8 * SECOND), replace=False)
    elif fault == "stop_and_replace_worker":
        cell.stop_worker(worker, chance.randrange(100_000, 8 * SECOND), replace=True)
    elif fault == "kill_leader":
        cell.replace_leader(gap_us=chance.randrange(0, 4 * SECOND))
    elif fault == "kill_leader_with_redis_away":
        cell.replace_leader(gap_us=chance.randrange(0, 4 * SECOND), blind=True)
    elif fault == "stop_leader":
        cell.stop_leader(chance.randrange(100_000, 5 * SECOND))
    elif fault == "kill_router":
        cell.kill_router(router)
    elif fault == "kill_router_and_worker":
        cell.kill_router(router)
        cell.kill_worker(worker)
    elif fault == "break_links":
        cell.break_links(chance.random())
    elif fault == "hold_feed":
        cell.hold_feed(chance.randrange(10_000, 6 * SECOND))
    elif fault == "cut":
        cell.cut_router_from_worker(chance.randrange(100_000, 12 * SECOND))
    elif fault in ("resume_elsewhere", "two_resumes") and clients:
        client = chance.choice(clients)
        cell.resume(client, router)
        if fault == "two_resumes":
            cell.resume(client, (router + 1) % len(cell.routers))
    elif fault == "resume_unnoticed" and clients:
        cell.resume(chance.choice(clients), router, unaware_us=chance.randrange(0, 8 * SECOND))
    elif fault == "cancel" and clients:
        cell.cancel(chance.choice(clients))
    elif fault == "cancel_storm":
        for client in clients[::2]:
            cell.cancel(client)


def check(cell: VirtualCell) -> None:
    cell.settle()
    for client in cell.clients.values():
        if client.cancelled:
            continue  # its router may have died with the cancellation: the request then ends with its grace
        assert client.ended is not None, f"{client.request_id} is stuck at {len(client.tokens)} of {client.max_tokens}"
        assert client.ended.reason == sampling_pb2.FINISH_REASON_LENGTH, f"{client.request_id}: {client.ended}"
        assert client.tokens == client.reference
    assert cell.leaks() == []
    if not cell.blind:
        # A leader that remembers nothing cannot tell the life that was replaced from the one that replaced it.
        assert [worker.key for worker in cell.workers.values() if worker.left] == []
        assert [worker.key for worker in cell.replaced if not worker.left] == []


def run(seed: int, requests: int, faults: list[tuple[int, str]], policy: str = "least_requests") -> None:
    chance = random.Random(seed)
    cell = VirtualCell(seed, policy=policy)
    for number in range(requests):
        prompt = [chance.randrange(1_000) for _ in range(chance.randrange(1, 60))]
        delay = chance.randrange(0, 3 * SECOND)
        length = chance.randrange(1, 60)
        router = chance.randrange(len(cell.routers))
        cell.time.after(delay, partial(cell.generate, f"q{number}", prompt, length, router))
    for at_us, fault in faults:
        cell.time.after(at_us, partial(inject, cell, fault, chance))
    cell.time.run_until(cell.time.now_us + 5 * SECOND)
    check(cell)


@pytest.mark.timeout(300)  # hundreds of virtual cells; a busy machine is no failure
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**32 - 1),
    requests=st.integers(1, 12),
    faults=st.lists(st.tuples(st.integers(0, 4 * SECOND), st.sampled_from(FAULTS)), max_size=8),
    policy=st.sampled_from(["round_robin", "least_requests", "edf_by_tier"]),
)
def test_any_interleaving_gives_the_reference_stream(
    seed: int, requests: int, faults: list[tuple[int, str]], policy: str
) -> None:
    run(seed, requests, faults, policy)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("seed", range(3))
def test_each_fault_alone(fault: str, seed: int) -> None:
    """Every row of the failure table at a moment when requests are queued, in prefill and in decode."""
    run(seed, 10, [(1_500_000, fault)])
