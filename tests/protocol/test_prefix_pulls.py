"""Prefixes read from peers (docs/protocol.md, section 12): under every fault the same tokens, and nothing leaks."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest
from virtual_cell import VirtualCell
from virtual_end import check
from virtual_faults import Account
from virtual_process import SECOND

FAULTS = (
    "kill_worker", "kill_engine", "hang_engine", "stop_worker", "stop_and_replace_worker", "kill_leader", "kill_router",
    "break_links", "resume_elsewhere", "cancel_storm", "drain", "moves", "flips", "drop_run", "drop_start",
)  # fmt: skip


def pulling(seed: int, faults: tuple[str, ...] = (), requests: int = 30) -> tuple[VirtualCell, Counter[str]]:
    """Requests that begin alike, on workers in turn."""
    chance = random.Random(seed)
    cell = VirtualCell(seed, policy="round_robin")
    account, lives = Account(), set(cell.workers.values())
    for number in range(requests):
        begin = 100 * chance.randrange(10)
        prompt = [*range(begin, begin + 48), *(chance.randrange(1_000) for _ in range(chance.randrange(1, 20)))]
        at_us, router = chance.randrange(SECOND // 10, 3 * SECOND), chance.randrange(2)
        cell.time.after(at_us, partial(cell.generate, f"q{number}", prompt, chance.randrange(1, 60), router))
    for fault in faults:
        cell.time.after(chance.randrange(SECOND // 2, 2 * SECOND), partial(account.make, cell, fault, chance))
    for _ in range(12):
        cell.time.run_until(cell.time.now_us + SECOND // 2)
        lives |= set(cell.workers.values())
    check(cell)
    outcomes: Counter[str] = Counter()
    for worker in lives:
        outcomes += worker.core.moves.pulls.outcomes
    return cell, outcomes


def test_prefixes_are_read() -> None:
    _, outcomes = pulling(1)
    assert outcomes["read"] >= 3, outcomes


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_breaks_the_tokens_are_the_same(fault: str) -> None:
    pulled = 0
    for seed in range(2):
        _, outcomes = pulling(seed, (fault,) * 3)
        pulled += outcomes["read"]
    assert pulled, "nothing was read in any of them"
