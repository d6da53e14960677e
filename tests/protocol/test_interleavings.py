"""Any interleaving of deliveries and faults gives every client exactly its reference stream (docs/protocol.md)."""

from __future__ import annotations

import random
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from virtual_cell import VirtualCell
from virtual_client import some_prompt
from virtual_end import check
from virtual_faults import MESSAGES, NAMES, Account
from virtual_process import SECOND

FAULT_AT_US = st.integers(0, 800_000)
"""After the arrival of one of the requests: most are under way then."""


def run(
    seed: int, requests: int, faults: list[tuple[int, int, str]], policy: str = "least_requests"
) -> tuple[VirtualCell, Account]:
    """Faults: (after which request's arrival, how long after, which)."""
    chance = random.Random(seed)
    cell = VirtualCell(seed, policy=policy)
    account = Account()
    arrivals_us = [chance.randrange(SECOND // 10, 4 * SECOND) for _ in range(requests)]
    for number, at_us in enumerate(arrivals_us):
        prompt = some_prompt(chance)
        length = chance.randrange(1, 150)
        router = chance.randrange(len(cell.routers))
        cell.time.after(at_us, partial(cell.generate, f"first-{number}", prompt, length, router))
    for number, after_us, fault in faults:
        at_us = arrivals_us[number % requests] + after_us
        cell.time.after(at_us, partial(account.make, cell, fault, chance))
    cell.time.run_until(cell.time.now_us + 6 * SECOND)
    check(cell)
    return cell, account


@pytest.mark.timeout(600)  # hundreds of virtual cells; a busy machine is no failure
def test_any_interleaving_gives_the_reference_stream() -> None:
    made = landed = 0

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        seed=st.integers(0, 2**32 - 1),
        requests=st.integers(1, 12),
        faults=st.lists(st.tuples(st.integers(0, 11), FAULT_AT_US, st.sampled_from(NAMES)), max_size=8),
        policy=st.sampled_from(["round_robin", "least_requests", "jsq", "hyperflexis"]),
    )
    def any_interleaving(seed: int, requests: int, faults: list[tuple[int, int, str]], policy: str) -> None:
        nonlocal made, landed
        _, account = run(seed, requests, faults, policy)
        made, landed = made + account.made, landed + account.landed

    any_interleaving()
    assert made >= 60
    assert landed >= made / 2, f"{landed} of {made} faults broke something while requests were live"


@pytest.mark.parametrize("fault", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_each_fault_alone(fault: str, seed: int) -> None:
    """Every row of the failure table at a moment when requests are queued, in prefill and in decode."""
    cell, account = run(seed, 10, [(5, 50_000, fault)])
    assert (account.made, account.landed) == (1, 1), "nothing was broken, or nobody was there to notice"
    kind = fault.removeprefix("drop_")
    assert cell.dropped[kind] == (kind in MESSAGES and kind != fault)
