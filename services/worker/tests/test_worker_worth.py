"""What tenants share of a tier; the rest of worth is seen in whole simulations (test_sim_fairness)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_queue import Prompt, queue_of

from hyperflexis_worker.steps.prefill_queue import PrefillQueue
from hyperflexis_worker.steps.worth import TENANTS, Worth

REQUEST_US = 20_000.0


def served(worth: Worth, tenant: str, requests: int, tier: str = "chat") -> None:
    for number in range(requests):
        worth.served(Prompt(number, 1_000, tier=tier, tenant=tenant), REQUEST_US)
        worth.settled(tier, kept=True)


def waiting(*tenants: str) -> PrefillQueue:
    return queue_of(*(Prompt(number, 1_000, tenant=tenant) for number, tenant in enumerate(tenants)))


@pytest.mark.parametrize("tenants", [2, 50, 200])
def test_equal_tenants_count_as_one_does_however_many_they_are(tenants: int) -> None:
    worth = Worth()
    names = [f"t{number}" for number in range(tenants)]
    for name in names * 3:
        served(worth, name, 1)
    few = worth.of(waiting(*names[:2], *names[-2:]))
    assert few.mean() == pytest.approx(1.0)
    assert few.max() < 1.5


def test_who_had_much_counts_less_than_who_had_little_and_both_together_as_before() -> None:
    worth = Worth()
    for _ in range(30):
        served(worth, "big", 9)
        served(worth, "small", 1)
    big, *_, small = worth.of(waiting("big", "big", "big", "small"))
    assert small > 20 * big
    assert 3 * big + small == pytest.approx(4.0)
    assert worth.of(waiting("big")).tolist() == [1.0], "with nobody to share with it counts as it is"


def test_tenants_that_are_gone_are_forgotten() -> None:
    worth = Worth()
    for number in range(20 * TENANTS):
        served(worth, f"t{number}", 1)
    assert sum(len(shares._had) for shares in worth._tiers.values()) <= 5 * TENANTS


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=400), st.integers(0, 5))
def test_a_queue_knows_the_tiers_and_tenants_of_those_in_it(arrivals: list[tuple[int, int]], kept: int) -> None:
    queue, here = PrefillQueue(), []
    for number, (tier, tenant) in enumerate(arrivals):
        here.append(Prompt(number, 10, tier=f"tier{tier}", tenant=f"tenant{tenant}"))
        queue.add(here[-1])
        if len(here) > kept:
            queue.remove(here.pop(0))
    tiers, tenants = list(queue.tiers), list(queue.tenants)
    assert [tiers[index] for index in queue.tier] == [request.tier for request in queue.requests]
    assert [tenants[index] for index in queue.tenant] == [request.tenant for request in queue.requests]
    assert list(queue.tenants.values()) == list(range(len(tenants)))
    assert max(len(tiers), len(tenants)) <= 65 + 2 * (kept + 1)


def test_worth_is_of_those_who_wait() -> None:
    assert Worth().of(waiting("a", "b")).tolist() == np.ones(2).tolist()
