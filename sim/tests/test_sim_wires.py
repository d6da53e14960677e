"""Reads over links of the simulator: one thing at a time at each end, last reads first, nobody for ever."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_sim.wires import WireRules, Wires
from hyperflexis_worker.kv.read_order import IN_FLIGHT_US, OVERTAKES

RULES = WireRules(gbps=100.0, setup_us=1_000.0, bytes_per_token=1e5, host_workers=2)
"""1,000 tokens are a millisecond within a host of two, four to the other one."""
Asked = tuple[float, int, int, float, bool]
"""When, source, target, tokens, last."""


def ends_of(rules: WireRules, asked: list[Asked]) -> list[float]:
    """When each read has come."""
    events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
    ends: dict[int, float] = {}
    numbers = itertools.count()

    def at(time_us: float, action: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(events, (time_us, next(numbers), action, arguments))

    wires = Wires(rules, at)

    def ask(number: int, now_us: float) -> None:
        _, source, target, tokens, last = asked[number]
        wires.read(source, target, tokens, last, now_us, lambda end_us: ends.__setitem__(number, end_us))

    for number, (when_us, *_) in enumerate(asked):
        at(when_us, ask, number)
    while events:
        now_us, _, action, arguments = heapq.heappop(events)
        action(*arguments, now_us)
    return [ends[number] for number in range(len(asked))]


def test_reads_of_a_worker_follow_one_another() -> None:
    # The second's set-up goes on beside the first; the third, to another host, waits for its source.
    asked = [(0.0, 0, 1, 1_000.0, False), (0.0, 0, 1, 5_000.0, False), (0.0, 0, 2, 1_000.0, False)]
    assert ends_of(RULES, asked) == pytest.approx([2_000.0, 6_000.0, 10_000.0])


def test_a_last_read_waits_for_one_piece_only() -> None:
    asked = [(0.0, 0, 1, 50_000.0, False), (100.0, 0, 1, 50_000.0, False), (200.0, 0, 1, 200.0, True)]
    copies, last = ends_of(RULES, asked)[:2], ends_of(RULES, asked)[2]
    assert last == pytest.approx(IN_FLIGHT_US + 200.0)
    assert copies == pytest.approx([51_000.0, 100_200.0])
    whole = replace(RULES, piece_us=float("inf"))
    assert ends_of(whole, asked)[2] == pytest.approx(50_200.0)


READS = st.lists(
    st.tuples(st.floats(0, 2e4), st.integers(0, 3), st.integers(0, 3), st.floats(1, 2e4), st.booleans()).filter(
        lambda read: read[1] != read[2]
    ),
    max_size=20,
).map(lambda reads: sorted(reads, key=lambda read: read[0]))


@given(asked=READS)
def test_without_last_reads_it_is_first_come_first_served(asked: list[Asked]) -> None:
    asked = [(*read[:4], False) for read in asked]
    whole = replace(RULES, piece_us=float("inf"))
    free: dict[tuple[str, int], float] = {}
    expected = []
    for now_us, source, target, tokens, _ in asked:
        took_us = tokens * RULES.bytes_per_token / (RULES.rate(source, target) * 1e3)
        begin_us = max(now_us, free.get(("out", source), 0.0), free.get(("in", target), 0.0))
        free["out", source] = free["in", target] = begin_us + took_us
        expected.append(max(begin_us + took_us, now_us + RULES.setup_us + took_us))
    assert ends_of(whole, asked) == pytest.approx(expected)


@given(asked=READS)
def test_last_reads_wait_for_each_other_and_one_piece_at_each_end(asked: list[Asked]) -> None:
    ends = ends_of(RULES, asked)
    lasts = [number for number, read in enumerate(asked) if read[4]]
    if len(lasts) > OVERTAKES:
        return
    busy_us = sum(asked[n][3] * RULES.bytes_per_token / (RULES.rate(*asked[n][1:3]) * 1e3) for n in lasts)
    for number in lasts:
        assert ends[number] <= asked[number][0] + RULES.setup_us + busy_us + 2 * IN_FLIGHT_US * len(lasts) + 1.0


def test_a_flood_of_last_reads_starves_no_pre_copy() -> None:
    flood = [(float(at), 0, 1, 100.0, True) for at in range(0, 100_000, 100)]
    *_, copy = ends_of(RULES, [*flood, (0.0, 0, 1, 8_000.0, False)])
    assert copy < 20_000.0
