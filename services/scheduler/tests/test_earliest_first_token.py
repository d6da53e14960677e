"""Where our dispatcher sends a request: what waits there counts by its turn, and what its decodes do to others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_common.turns import WORK_ORDER
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.dispatch_policy import Ask, EarliestFirstToken, Prospect, in_time
from hyperflexis_scheduler.core.loads import Slots, WorkerLoads, counts_before

MS, SECOND = 1e3, 1e6
H200 = StepTimeModel(6_000.0, 25.0, 25.0, 0.0, 0.02, 20.0, host_us=0.0)
CHAT = Ask(500, 0.0, 500 * MS, 50 * MS, 300, expected_tokens=200.0)
SUMMARY = Ask(4_000, 0.0, 15 * SECOND, 150 * MS, 500, expected_tokens=200.0)


def workers(*rows: dict[Any, float]) -> tuple[WorkerLoads, Slots]:
    """Each with the columns that differ from an idle H200; `queue`: (turn, prefill), microseconds."""
    loads = WorkerLoads(len(rows))
    for row in rows:
        slot = loads.open()
        loads.model(slot, H200)
        for field, value in row.items():
            if field != "queue":
                loads.set(slot, field, value)
        turn_us, prefill_us = row.get("queue", (0.0, 0.0))
        loads.queue(slot, prefill_us * counts_before(turn_us))
    return loads, np.arange(len(rows))


def chosen(ask: Ask, *rows: dict[Any, float]) -> int:
    return EarliestFirstToken().choose(ask, *workers(*rows)).slot


LOOSE = {"queue": (5 * SECOND, 4 * SECOND)}
TIGHT = {"queue": (100 * MS, 300 * MS)}


def test_a_request_does_not_wait_for_what_has_its_turn_later():
    assert chosen(CHAT, LOOSE, TIGHT) == 0
    assert chosen(SUMMARY, LOOSE, TIGHT) == 1, "for a loose one the whole queue comes before"


def test_who_is_idle_comes_before_one_that_runs_a_step_of_what_comes_later():
    little = {"queue": (5 * SECOND, 20 * MS)}
    assert chosen(CHAT, LOOSE, {}) == chosen(CHAT, LOOSE, little) == 1
    loads, among = workers(LOOSE, little, {})
    assert Prospect(CHAT, loads.view(among)).waits_us.tolist() == [75 * MS, 20 * MS, 0.0]


def test_only_what_comes_before_decides_who_can_still_be_in_time():
    late = {"queue": (100 * MS, 600 * MS)}
    assert in_time(CHAT, *workers(LOOSE, late)).tolist() == [0]
    assert in_time(CHAT._replace(age_us=499 * MS), *workers({}, {})).tolist() == []


@pytest.mark.parametrize(
    ("changes", "sooner_us"),
    [
        ({}, 0.0),
        ({"age_us": 100 * MS}, 100 * MS),
        ({"weight": 2.0}, WORK_ORDER * 0.5 * (500 * 25 + 200 * (25 + 20 + 0.02 * 600))),
    ],
)
def test_a_turn_comes_by_deadline_and_by_work_over_weight(changes, sooner_us):
    loads, among = workers({}, {columns.PACE: 3.0})
    usual, other = (Prospect(ask, loads.view(among)).turn_us for ask in (CHAT, CHAT._replace(**changes)))
    assert usual[0] - other[0] == pytest.approx(sooner_us)
    assert (usual[1] - 500 * MS) == pytest.approx(3 * (usual[0] - 500 * MS)), "work takes as long as it really does"


def test_decodes_go_where_they_lengthen_the_wait_of_others_least():
    busy = {columns.RUNNING: 60.0, columns.CONTEXT: 60_000.0, columns.TIGHTEST: 50 * MS}
    assert chosen(CHAT, busy | {columns.PACE: 2.0}, busy) == 1, "a slow worker's steps are filled by half as many"
    # Tight decodes to the tight: they shorten everybody's steps once.
    loose = busy | {columns.TIGHTEST: 150 * MS}
    assert chosen(CHAT, loose, busy) == 1
    assert chosen(SUMMARY, loose, busy) == 0


def test_a_first_token_that_comes_much_later_is_worth_some_harm():
    busy = {columns.RUNNING: 60.0, columns.CONTEXT: 60_000.0, columns.TIGHTEST: 50 * MS}
    assert chosen(CHAT, busy, {"queue": (0.0, 400 * MS)}) == 0


def test_where_it_is_only_prefilled_its_decodes_do_no_harm():
    prefills = {columns.ROLE: float(columns.PREFILL), columns.PACE: 2.0, columns.RUNNING: 60.0}
    choice = EarliestFirstToken().choose(CHAT, *workers(prefills))
    assert choice.numbers == {"candidates": 1.0, "harm_us": 0.0}


def test_a_prefix_that_is_read_meanwhile_costs_the_longer_of_the_two():
    loads, among = workers(TIGHT, TIGHT)
    ask = CHAT._replace(cached_tokens=np.array([400.0, 400.0]), read_us=np.array([200 * MS, 350 * MS]))
    until_us = Prospect(ask, loads.view(among)).until_us
    assert until_us.tolist() == pytest.approx([302.5 * MS, 352.5 * MS])


def test_a_worker_that_is_full_gets_no_more_for_that():
    """Where it takes all of the time already, one decode more is no free one."""
    full = {columns.RUNNING: 900.0, columns.CONTEXT: 900_000.0, columns.TIGHTEST: 50 * MS}
    assert chosen(CHAT, full, {"queue": (0.0, 400 * MS)}) == 1


def test_a_promise_that_no_step_can_keep_makes_no_worker_look_full():
    loads, among = workers({}, {})
    busy = {columns.RUNNING: 20.0, columns.CONTEXT: 20_000.0}
    for slot in among.tolist():
        for field, value in busy.items():
            loads.set(slot, field, value)
    loads.decodes(0, [2 * MS, 50 * MS])
    loads.decodes(1, [50 * MS])
    assert loads.of(columns.TIGHTEST, among).tolist() == [50 * MS, 50 * MS]
    asks = [CHAT._replace(tpot_us=tpot_us) for tpot_us in (2 * MS, 50 * MS)]
    harms = [EarliestFirstToken().choose(ask, loads, among).numbers["harm_us"] for ask in asks]
    assert harms[0] == harms[1] < 30 * MS


def test_who_could_never_keep_it_is_the_worst_place_where_somebody_could():
    """Steps of 6 and of 12 ms with nothing in them, 10 ms a token: on the slower one it would only be late."""
    slow = {columns.PACE: 2.0}
    hasty = CHAT._replace(tpot_us=10 * MS)
    assert chosen(hasty, {}, slow) == chosen(hasty, {"queue": (0.0, 400 * MS)}, slow) == 0
    assert chosen(CHAT._replace(tpot_us=5 * MS), {"queue": (0.0, 400 * MS)}, slow) == 1, "neither can"
