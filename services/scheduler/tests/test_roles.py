"""How many workers only prefill: none where that gains nothing, never all, and no flapping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_common.step_time import SEEDS, StepTimeModel
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.loads import DECODE, MIXED, PREFILL, WorkerLoads
from hyperflexis_scheduler.core.roles import RoleController, RoleRules

A100 = SEEDS["a100/llama-3.1-8b/tp1"]
H200 = SEEDS["h200/llama-3.1-8b/tp1"]
SECOND = 1e6


def pool(
    workers: int, decodes: float, tpot_us: float, queued_us: float, model: StepTimeModel = A100, kv: float = 4e5
) -> WorkerLoads:
    loads = WorkerLoads(workers)
    for _ in range(workers):
        slot = loads.open()
        loads.model(slot, model)
        for field, value in (
            (columns.KV_TOKENS, kv),
            (columns.RUNNING, decodes),
            (columns.CONTEXT, 1_000 * decodes),
            (columns.KV_USED, 1_000 * decodes),
            (columns.TIGHTEST, tpot_us),
            (columns.QUEUED_US, queued_us),
        ):
            loads.set(slot, field, value)
    return loads


def settle(loads: WorkerLoads, controller: RoleController, seconds: float = 30.0, from_us: float = 0.0) -> list[int]:
    """Roles after so long of the same; every flip is made."""
    among = np.arange(loads.column(columns.ROLE).size)
    for at_us in np.arange(from_us, from_us + seconds * SECOND, SECOND / 10):
        for slot, role in controller.round(float(at_us), loads, among).roles.items():
            loads.set(slot, columns.ROLE, role)
    return [int(role) for role in loads.of(columns.ROLE, among)]


def test_all_do_both_where_nothing_waits():
    assert settle(pool(4, 10, 30_000.0, 0.0), RoleController()) == [MIXED] * 4


def test_some_only_prefill_where_prefill_waits_and_steps_are_dear():
    roles = settle(pool(4, 10, 30_000.0, 200_000.0), RoleController())
    assert PREFILL in roles and MIXED in roles and DECODE not in roles


def test_all_do_both_where_it_would_gain_little():
    """What a step costs anyway is a tenth of the tightest TPOT or less: cheap steps, or loose promises."""
    assert settle(pool(4, 10, 30_000.0, 200_000.0, H200), RoleController()) == [MIXED] * 4
    assert settle(pool(4, 10, 60_000.0, 200_000.0), RoleController()) == [MIXED] * 4
    assert settle(pool(4, 0, np.inf, 200_000.0), RoleController()) == [MIXED] * 4


def test_the_others_must_hold_the_decodes():
    few, many = (
        settle(pool(4, 10, 30_000.0, 2e5), RoleController()),
        settle(pool(4, 60, 30_000.0, 2e5), RoleController()),
    )
    assert few.count(PREFILL) > many.count(PREFILL) == 0
    full = pool(4, 10, 30_000.0, 2e5, kv=12_000.0)
    assert settle(full, RoleController()) == [MIXED] * 4


def test_back_to_both_when_it_is_over():
    loads, controller = pool(4, 10, 30_000.0, 200_000.0), RoleController()
    assert PREFILL in settle(loads, controller)
    for slot in range(4):
        loads.set(slot, columns.QUEUED_US, 0.0)
    assert settle(loads, controller, from_us=30 * SECOND) == [MIXED] * 4


def test_decodes_that_come_take_workers_back():
    loads, controller = pool(4, 10, 30_000.0, 200_000.0), RoleController()
    assert PREFILL in settle(loads, controller)
    for slot in range(4):
        loads.set(slot, columns.RUNNING, 80)
        loads.set(slot, columns.CONTEXT, 80_000)
    assert settle(loads, controller, from_us=30 * SECOND) == [MIXED] * 4


def test_a_short_queue_is_no_reason():
    loads, controller = pool(4, 10, 30_000.0, 0.0), RoleController()
    settle(loads, controller, 10.0)
    for slot in range(4):
        loads.set(slot, columns.QUEUED_US, 60_000.0)
    assert settle(loads, controller, 0.5, 10 * SECOND) == [MIXED] * 4


@given(
    st.integers(1, 8),
    st.floats(0, 100),
    st.sampled_from([30_000.0, 50_000.0, 150_000.0]),
    st.floats(0, 1e6),
    st.sampled_from([A100, H200]),
)
def test_one_flip_a_second_somebody_always_decodes_and_it_comes_to_rest(workers, decodes, tpot_us, queued_us, model):
    loads, controller, among = pool(workers, decodes, tpot_us, queued_us, model), RoleController(), np.arange(workers)
    flips = []
    for at_us in np.arange(0, 60 * SECOND, SECOND / 2):
        answer = controller.round(float(at_us), loads, among)
        assert len(answer.roles) <= 1 and answer.reason and "queued_us" in answer.numbers
        for slot, role in answer.roles.items():
            assert loads.get(slot, columns.ROLE) != role
            loads.set(slot, columns.ROLE, role)
            flips.append(at_us)
        assert (loads.of(columns.ROLE, among) != PREFILL).any()
    assert all(later - earlier >= RoleRules().rest_us for earlier, later in zip(flips, flips[1:], strict=False))
    assert len(flips) < 2 * workers


def test_the_one_that_gains_most_prefills():
    loads = pool(3, 5, 30_000.0, 300_000.0)
    loads.set(1, columns.PACE, 1.3)  # each of its steps costs more
    controller = RoleController()
    among = np.arange(3)
    roles = dict(controller.round(0.0, loads, among).roles)
    assert roles == {1: PREFILL}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_few_to_split(workers):
    assert settle(pool(workers, 5, 30_000.0, 1e6), RoleController(), 2.0) == [MIXED] * workers
