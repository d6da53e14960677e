"""Which worker takes a decode, and who moves: nothing without room or budget, and nothing back and forth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis_common.step_time import SEEDS
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.decode_placement import Decode, DecodePlacement, PlacementRules
from hyperflexis_scheduler.core.links import Links
from hyperflexis_scheduler.core.loads import DECODE, MIXED, PREFILL, WorkerLoads
from hyperflexis_scheduler.core.migration import TRIGGERS, Migration, MigrationRules, Move, Running
from hyperflexis_scheduler.core.step_share import StepShare

MODEL = SEEDS["a100/llama-3.1-8b/tp1"]
TPOTS = (30_000.0, 50_000.0, 150_000.0)


def loads_of(*workers: dict[int, float], kv_tokens: float = 400_000.0) -> WorkerLoads:
    """A row each, of columns that are not as in an idle worker."""
    loads = WorkerLoads(len(workers))
    for worker in workers:
        slot = loads.open()
        loads.model(slot, MODEL)
        loads.set(slot, columns.KV_TOKENS, kv_tokens)
        for field, value in worker.items():
            loads.set(slot, field, value)
    return loads


def busy(decodes: float, tpot_us: float, context: float = 1_000.0, role: int = MIXED) -> dict[int, float]:
    held = {columns.RUNNING: decodes, columns.CONTEXT: decodes * context, columns.KV_USED: decodes * context}
    return {**held, columns.TIGHTEST: tpot_us, columns.ROLE: role}


def decode(tpot_us: float = 50_000.0, context: float = 1_000.0) -> Decode:
    return Decode(context, 100.0, tpot_us)


ALL = np.arange(3)


def test_a_tight_decode_goes_to_the_tight_and_a_loose_one_to_the_loose():
    loads = loads_of(busy(10, 30_000.0, role=PREFILL), busy(30, 30_000.0), busy(30, 150_000.0))
    chosen = {tpot_us: DecodePlacement().choose(decode(tpot_us), 0, loads, ALL, Links(330.0)).slot for tpot_us in TPOTS}
    assert chosen == {30_000.0: 1, 50_000.0: 1, 150_000.0: 2}


def test_among_workers_alike_the_one_with_the_least_to_do():
    loads = loads_of(busy(1, 50_000.0, role=PREFILL), busy(40, 50_000.0), busy(20, 50_000.0))
    placed = DecodePlacement().choose(decode(), 0, loads, ALL, Links(330.0))
    assert (placed.slot, placed.reason) == (2, "least_harm")
    assert {"harm", "predicted_step_us", "read_us"} <= set(placed.numbers)


def test_what_is_on_its_way_counts():
    loads = loads_of(busy(1, 50_000.0, role=PREFILL), busy(20, 50_000.0), busy(20, 50_000.0))
    loads.set(1, columns.ARRIVING, 15)
    loads.set(1, columns.ARRIVING_TOKENS, 15_000)
    assert DecodePlacement().choose(decode(), 0, loads, ALL, Links(330.0)).slot == 2


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ((busy(1, 50_000.0, role=PREFILL), busy(1, 50_000.0, role=PREFILL)), "no_decode_worker"),
        ((busy(1, 5e4) | {columns.KV_USED: 399_500.0}, busy(1, 5e4) | {columns.KV_USED: 399_500.0}), "no_kv_room"),
        ((busy(200, 30_000.0), busy(200, 30_000.0)), "no_tpot_budget"),
        # Room on the one, budget on the other.
        ((busy(200, 30_000.0), busy(1, 5e4) | {columns.KV_USED: 399_500.0}), "no_worker_with_both"),
    ],
)
def test_where_nobody_can_it_stays(others, reason):
    loads = loads_of(busy(4, 50_000.0, role=PREFILL), *others)
    placed = DecodePlacement().choose(decode(), 0, loads, ALL, Links(330.0))
    assert (placed.slot, placed.reason) == (None, reason)


def test_busy_links_are_left_alone():
    loads = loads_of(busy(4, 50_000.0, role=PREFILL), busy(4, 50_000.0))
    links = Links(330.0)
    for _ in range(PlacementRules().moves):
        links.begin(0, 1, 0.1)
    placed = DecodePlacement().choose(decode(), 0, loads, np.arange(2), links)
    assert (placed.slot, placed.reason) == (None, "links_busy")
    links.end(0, 1, 0.1)
    assert DecodePlacement().choose(decode(), 0, loads, np.arange(2), links).slot == 1
    assert DecodePlacement().choose(decode(context=90_000.0), 0, loads, np.arange(2), Links(0.1)).slot is None


def test_a_link_waits_for_what_is_ahead_of_it():
    links = Links(100.0, setup_us=1_000.0)
    links.measured(0, 2, 10.0)
    assert links.read_us(0, np.array([1, 2]), 1.0).tolist() == pytest.approx([11_000.0, 101_000.0])
    links.begin(0, 1, 1.0)
    assert links.read_us(0, np.array([1, 2]), 1.0).tolist() == pytest.approx([21_000.0, 201_000.0])
    assert (links.moves(0), links.moves(1), links.moves(2)) == (1, 1, 0)
    links.end(0, 1, 1.0)
    assert links.read_us(0, np.array([1]), 1.0).tolist() == pytest.approx([11_000.0])
    links.forget(2)
    assert links.gbps(0, 2) == 100.0


WORKERS = st.lists(
    st.tuples(
        st.integers(0, 250),
        st.sampled_from(TPOTS),
        st.integers(50, 4_000),
        st.sampled_from([MIXED, MIXED, PREFILL, DECODE]),
        st.floats(0.5, 3.0),
    ),
    min_size=2,
    max_size=6,
)


def drawn_loads(workers, kv_tokens: float) -> WorkerLoads:
    rows = [
        busy(n, tpot if n else np.inf, context, role) | {columns.PACE: pace} for n, tpot, context, role, pace in workers
    ]
    return loads_of(*rows, kv_tokens=kv_tokens)


@given(
    WORKERS,
    st.sampled_from(TPOTS),
    st.integers(1, 100_000),
    st.sampled_from([20_000.0, 400_000.0]),
    st.sampled_from([1.0, 25.0, 330.0]),
)
def test_nothing_is_chosen_that_lacks_room_or_budget(workers, tpot_us, context, kv_tokens, gbps):
    loads = drawn_loads(workers, kv_tokens)
    asked = decode(tpot_us, context)
    among, rules = np.arange(len(workers)), PlacementRules()
    placed = DecodePlacement(rules).choose(asked, 0, loads, among, Links(gbps))
    if placed.slot is None:
        return
    here = np.array([placed.slot])
    assert placed.slot != 0 and loads.get(placed.slot, columns.ROLE) != PREFILL
    need = loads.get(placed.slot, columns.KV_USED) + asked.context_tokens + asked.growth_tokens
    assert need <= rules.kv_share * kv_tokens
    empty_us = loads.column(columns.PACE) * loads.column(columns.C0)
    lost = tpot_us <= empty_us[loads.column(columns.ROLE) != PREFILL].min() and tpot_us <= empty_us[0]
    tightest_us = min(loads.get(placed.slot, columns.TIGHTEST), np.inf if lost else tpot_us)
    assert StepShare(loads.view(here)).step_us(1, context)[0] <= rules.tpot_share * tightest_us
    assert placed.numbers["read_us"] <= rules.read_us


def running_on(slot: int, tpots: list[float], context: float = 1_000.0) -> list[Running]:
    """As a scheduler's book would have them."""
    return [Running(f"{slot}/{at}", Decode(context, 100.0, tpot_us)) for at, tpot_us in enumerate(tpots)]


def apply(moves: list[Move], held: dict[int, list[float]]) -> None:
    for move in moves:
        slot, at = map(int, str(move.key).split("/"))
        held.setdefault(move.target, []).append(held[slot][at])
        held[slot][at] = np.nan
    for slot in held:
        held[slot] = [tpot_us for tpot_us in held[slot] if not np.isnan(tpot_us)]


def loads_held(held: dict[int, list[float]], workers: int, kv_tokens: float, roles: dict[int, int]) -> WorkerLoads:
    rows = [
        busy(len(held.get(slot, [])), min(held.get(slot) or [np.inf]), role=roles.get(slot, MIXED))
        for slot in range(workers)
    ]
    return loads_of(*rows, kv_tokens=kv_tokens)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from(TPOTS), max_size=40), st.sampled_from([MIXED, PREFILL])),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from([20_000.0, 60_000.0, 400_000.0]),
    st.sets(st.integers(0, 3), max_size=2),
)
def test_rounds_come_to_rest(workers, kv_tokens, leaving):
    """With nothing coming or going every decode moves once at most, to where it may stay."""
    held = {slot: list(tpots) for slot, (tpots, _) in enumerate(workers)}
    roles = {slot: role for slot, (_, role) in enumerate(workers)}
    migration, among, left = Migration(DecodePlacement()), np.arange(len(workers)), sum(map(len, held.values()))
    while True:
        loads = loads_held(held, len(workers), kv_tokens, roles)
        running = {slot: running_on(slot, each) for slot, each in held.items()}
        moves = migration.round(loads, among, running, Links(330.0), leaving)
        if not moves:
            return
        assert len({move.key for move in moves}) == len(moves) <= left
        left -= len(moves)
        for move in moves:
            assert move.source in leaving or roles[move.source] == PREFILL
            assert move.target not in leaving and roles[move.target] == MIXED
        apply(moves, held)


@pytest.mark.parametrize("reason", ["drain", "role"])
def test_who_must_be_rid_of_its_decodes_is(reason):
    held = {0: [30_000.0, 50_000.0, 150_000.0] * 4, 1: [50_000.0] * 5, 2: [150_000.0] * 5}
    roles = {0: PREFILL} if reason == "role" else {}
    leaving = [0] if reason == "drain" else []
    migration = Migration(DecodePlacement())
    moves = migration.round(
        loads_held(held, 3, 400_000.0, roles),
        ALL,
        {slot: running_on(slot, each) for slot, each in held.items()},
        Links(330.0),
        leaving,
    )
    assert {move.reason for move in moves} == {reason}
    assert {move.source for move in moves} == {0} and {move.target for move in moves} <= {1, 2}
    assert len(moves) == 12


def test_a_round_is_bounded_and_never_promises_more_than_there_is():
    held = {0: [50_000.0] * 60, 1: [50_000.0]}
    rules = MigrationRules(per_round=5)
    migration = Migration(DecodePlacement(), rules)
    running = {slot: running_on(slot, each) for slot, each in held.items()}
    assert len(migration.round(loads_held(held, 2, 400_000.0, {}), np.arange(2), running, Links(), [0])) == 5
    # Room for four more on the other worker: 5,000 tokens, 95 % of them, of which 1,000 are in use.
    loads = loads_held(held, 2, 5_800.0, {})
    assert len(Migration(DecodePlacement()).round(loads, np.arange(2), running, Links(), [0])) == 4


def test_two_full_workers_that_leave_keep_what_they_have():
    held = {0: [30_000.0] * 20, 1: [150_000.0] * 20}
    running = {slot: running_on(slot, each) for slot, each in held.items()}
    loads = loads_held(held, 2, 20_000.0, {})
    assert Migration(DecodePlacement()).round(loads, np.arange(2), running, Links(), [0]) == []
    assert Migration(DecodePlacement()).round(loads, np.arange(2), running, Links(), [0, 1]) == []


@pytest.mark.parametrize("tight", [1, 8])
def test_those_that_fit_nowhere_do_not_keep_the_others(tight):
    held = {0: [30_000.0] * tight + [150_000.0], 1: [150_000.0] * 20}
    running = {slot: running_on(slot, each) for slot, each in held.items()}
    loads = loads_held(held, 2, 400_000.0, {})
    loads.set(1, columns.RUNNING, 400)  # its steps are too long for the tight one
    moves = Migration(DecodePlacement()).round(loads, np.arange(2), running, Links(), [0])
    assert [move.key for move in moves] == [f"0/{tight}"]


def test_what_nobody_could_keep_leaves_too():
    """2 ms a token: it would be late on any of them."""
    held = {0: [2_000.0] * 4 + [150_000.0], 1: [150_000.0] * 3}
    running = {slot: running_on(slot, each) for slot, each in held.items()}
    moves = Migration(DecodePlacement()).round(loads_held(held, 2, 400_000.0, {}), np.arange(2), running, Links(), [0])
    assert len(moves) == 5


def test_a_round_changes_no_loads():
    held = {0: [50_000.0] * 6, 1: [50_000.0]}
    loads = loads_held(held, 2, 400_000.0, {})
    before = loads.copy()
    running = {slot: running_on(slot, each) for slot, each in held.items()}
    assert Migration(DecodePlacement()).round(loads, np.arange(2), running, Links(), [0])
    for field in range(columns.FIELDS):
        assert (loads.column(field) == before.column(field)).all()


def test_triggers_are_known():
    assert MigrationRules().triggers == set(TRIGGERS)
