"""Rules of the dispatch baselines, each by an example that can be worked by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from hyperflexis_scheduler.core.dispatch_policy import Ask
from hyperflexis_scheduler.core.loads import (
    C0,
    C1,
    C2,
    C4,
    CONTEXT,
    KV_TOKENS,
    KV_USED,
    QUEUED_TOKENS,
    QUEUED_US,
    REQUESTS,
    RUNNING,
    WorkerLoads,
)
from hyperflexis_sim.chance import Chance
from hyperflexis_sim.dispatch_baselines import DynamoKvCost, LlmdDefault, LlmdHeadroom, PowerOfTwo
from hyperflexis_sim.forecast import Forecast
from hyperflexis_sim.slo_dispatch_baselines import LlumnixSlo, PolyServe
from hyperflexis_sim.tier_partition import TierPartition


def loads_of(*workers: dict[int, float]) -> WorkerLoads:
    """Steps of 10 ms and 10 us a token, 100,000 tokens of KV."""
    loads = WorkerLoads(len(workers))
    for columns in workers:
        slot = loads.open()
        for field, value in ({C0: 10_000.0, C1: 10.0, C2: 10.0, KV_TOKENS: 100_000.0} | columns).items():
            loads.set(slot, field, value)
    return loads


def ask(tokens: int = 100, ttft_us: float = 1e6, tpot_us: float = 50e3, expected: float = 0.0) -> Ask:
    return Ask(tokens, 0.0, ttft_us, tpot_us, 1_000, "chat", expected)


def picks(policy, loads: WorkerLoads, request: Ask | None = None) -> int:
    return policy.choose(request or ask(), loads, np.arange(loads.column(C0).size)).slot


def queued(tokens: float) -> dict[int, float]:
    return {QUEUED_TOKENS: tokens, QUEUED_US: 10.0 * tokens, REQUESTS: 1.0}


def test_chance_is_a_seeds_own_and_even():
    one, same, other = Chance(3), Chance(3), Chance(4)
    draws = [one.below(7) for _ in range(7_000)]
    assert draws == [same.below(7) for _ in range(7_000)]
    assert draws != [other.below(7) for _ in range(7_000)]
    assert all(850 < count < 1_150 for count in Counter(draws).values())


def test_power_of_two_never_takes_the_most_loaded_and_takes_all_others():
    loads = loads_of({REQUESTS: 9.0}, {REQUESTS: 1.0}, {REQUESTS: 5.0})
    policy = PowerOfTwo(0)
    counts = Counter(picks(policy, loads) for _ in range(3_000))
    assert counts[0] == 0
    assert 1_850 < counts[1] < 2_150  # in two pairs of three
    assert picks(PowerOfTwo(0), loads_of({REQUESTS: 9.0})) == 0


def test_llmd_adds_queue_and_kv():
    # Queues of 4, 2 and 0 score 0, 1 and 2; KV adds 2, 1.8 and 0.4: 2, 2.8, 2.4.
    workers = [(4.0, 0.0), (2.0, 10_000.0), (0.0, 80_000.0)]
    loads = loads_of(*({REQUESTS: 10 + waiting, RUNNING: 10.0, KV_USED: used} for waiting, used in workers))
    choice = LlmdDefault().choose(ask(), loads, np.arange(3))
    assert (choice.slot, choice.numbers["score"]) == (1, pytest.approx(2.8))
    hits = LlmdDefault(hits=lambda request, among: np.array([0.0, 0.0, 50.0]))
    assert hits.choose(ask(), loads, np.arange(3)).numbers["score"] == pytest.approx(2.4 + 1.5)


def test_llmd_breaks_ties_by_chance():
    loads, policy = loads_of({}, {}), LlmdDefault(0)
    assert {picks(policy, loads) for _ in range(20)} == {0, 1}


def test_forecast_of_the_first_token_and_the_step():
    # 1,000 tokens queued and 500 of its own, 500 a step beside 12 decodes: 3 steps of 10.12 ms, 15 ms of prefill.
    loads = loads_of(queued(1_000) | {RUNNING: 12.0, CONTEXT: 5_000.0})
    forecast = Forecast(loads, np.arange(1), 512)
    assert forecast.ttft_us(1_000.0, 500).tolist() == [pytest.approx(1_000 + 3 * 10_120 + 15_000)]
    assert forecast.tpot_us(500).tolist() == [pytest.approx(10_000 + 10 * (13 + 500))]


def test_headroom_packs_or_spreads():
    # Idle: 1 ms and a step of 10 ms. Behind 20,000 tokens: beyond 500 ms. Behind 2,000: in time, with less to spare.
    loads = loads_of(queued(0), queued(2_000), queued(20_000))
    request = ask(ttft_us=500e3)
    assert picks(LlmdHeadroom(512, explore_one_in=10**9), loads, request) == 1
    assert picks(LlmdHeadroom(512, "most", explore_one_in=10**9), loads, request) == 0
    with pytest.raises(ValueError, match="least, most"):
        LlmdHeadroom(512, "some")


def test_headroom_explores_those_that_have_none_at_times():
    loads, policy = loads_of(queued(0), queued(20_000)), LlmdHeadroom(512)
    explored = sum(picks(policy, loads, ask(ttft_us=500e3)) for _ in range(10_000))
    assert 50 < explored < 150


def test_without_headroom_idle_then_slow_then_late_then_both():
    idle = {}
    slow = {RUNNING: 100.0, REQUESTS: 100.0}  # 11 ms a step, in time
    late = {QUEUED_US: 900e3, REQUESTS: 50.0}  # 10 ms a step
    both = slow | {QUEUED_US: 900e3}
    request = ask(ttft_us=300e3, tpot_us=10.5e3)
    nobody = {**both, QUEUED_US: 1.2e6}
    policy = LlmdHeadroom(512, explore_one_in=10**9)
    assert picks(policy, loads_of(both, late, slow), request) == 2
    assert picks(policy, loads_of(both, late, nobody), ask(ttft_us=300e3, tpot_us=9e3)) == 1  # the least broken
    hasty = ask(tokens=40_000, ttft_us=1.0, tpot_us=10.5e3)  # late everywhere, idle or not
    assert picks(policy, loads_of(both, late, idle), hasty) == 2
    assert picks(policy, loads_of(both, late, nobody), request) == 1


def test_headroom_without_slos_is_finite():
    loads = loads_of(queued(0), queued(1_000))
    choice = LlmdHeadroom(512).choose(ask(ttft_us=math.inf, tpot_us=math.inf), loads, np.arange(2))
    assert all(map(math.isfinite, choice.numbers.values()))


def test_dynamo_counts_blocks_to_prefill_and_blocks_held():
    # 160 tokens are 10 blocks. One: 10 held, 10 + 10 queued -> 20 + 30. Then 40 held -> 10 + 50, 50 -> 10 + 60.
    loads = loads_of(queued(160) | {KV_USED: 160.0}, {KV_USED: 640.0}, {KV_USED: 800.0})
    choice = DynamoKvCost().choose(ask(160), loads, np.arange(3))
    assert (choice.slot, dict(choice.numbers)) == (0, {"cost": 50.0, "prefill_blocks": 20.0, "blocks": 30.0})
    hits = DynamoKvCost(hits=lambda request, among: np.array([0.0, 160.0, 0.0]))
    assert hits.choose(ask(160), loads, np.arange(3)).slot == 1  # nothing to prefill, 40 blocks


def test_polyserve_fills_the_most_loaded_of_its_bin():
    loads, policy = loads_of({}, {}, {}), PolyServe(512)
    assert picks(policy, loads, ask(tpot_us=50e3)) == 0
    for field, value in ((REQUESTS, 1.0), (RUNNING, 1.0), (CONTEXT, 100.0)):
        loads.set(0, field, value)
    assert picks(policy, loads, ask(tpot_us=50e3)) == 0  # packed, though two are idle
    assert picks(policy, loads, ask(tpot_us=30e3)) == 1  # another tier, an idle worker
    loads.set(1, REQUESTS, 1.0)
    assert picks(policy, loads, ask(tpot_us=150e3)) == 2
    loads.set(2, REQUESTS, 1.0)
    # No idle worker is left: a new tier borrows the nearest tighter bin.
    assert picks(policy, loads, ask(tpot_us=100e3)) == 0
    assert picks(policy, loads, ask(tpot_us=29e3)) == 1  # tighter than all: the nearest looser
    loads.set(0, REQUESTS, 0.0)  # idle again: of no bin
    assert picks(policy, loads, ask(tpot_us=29e3)) == 1
    assert picks(policy, loads, ask(tpot_us=150e3)) == 2


def test_polyserve_admits_by_first_token_second_token_and_grown_batch():
    busy, idle = {REQUESTS: 1.0, RUNNING: 1.0}, {}
    request = ask(tpot_us=20e3)  # a step with a full chunk: 10 ms and 512 tokens, 15.12 ms
    policy = PolyServe(512)
    policy.choose(request, loads_of(idle, idle), np.arange(1))
    assert picks(policy, loads_of(busy, idle), request) == 0
    assert picks(policy, loads_of(busy | queued(40_000), idle), request) == 1  # the first token would be late
    expensive = loads_of(busy, idle)
    expensive.column(C4)[:] = 1.0  # 1 us a context token: one and a half times 3,200 more are 4.8 ms, once is 3.2 ms
    assert picks(policy, expensive, ask(tpot_us=20e3)) == 0
    assert picks(policy, expensive, ask(tpot_us=20e3, expected=3_200)) == 1


def test_polyserve_takes_the_earliest_where_none_admits():
    loads = loads_of(queued(20_000), queued(10_000))
    assert PolyServe(512).choose(ask(ttft_us=1.0), loads, np.arange(2)).reason == "none_admits"
    assert picks(PolyServe(512), loads, ask(ttft_us=1.0)) == 1


def test_llumnix_takes_the_freest_that_passes():
    # Freeness: 80,000 / 4, 90,000 / 10, (100,000 - 20,000) / 1 - but the last would be late.
    loads = loads_of({KV_USED: 20_000.0, REQUESTS: 4.0}, {KV_USED: 10_000.0, REQUESTS: 10.0}, queued(20_000))
    assert picks(LlumnixSlo(512), loads, ask(ttft_us=300e3)) == 0
    assert picks(LlumnixSlo(512), loads, ask(ttft_us=300e6)) == 2
    assert picks(LlumnixSlo(512), loads, ask(ttft_us=1.0)) == 2  # nobody passes: all are candidates


def test_tiers_apart_have_workers_in_the_measure_of_their_work():
    """A quarter of the work is tight: of four workers it has the first, and keeps it whatever waits there."""
    policy, loads = TierPartition(), loads_of(*({} for _ in range(4)))
    for _ in range(2_000):
        for tokens, tpot_us in ((100, 30e3), (300, 150e3)):
            picks(policy, loads, ask(tokens, tpot_us=tpot_us))
    tight = {picks(policy, loads_of(queued(9_000.0), {}, {}, {}), ask(100, tpot_us=30e3)) for _ in range(20)}
    loose = {picks(policy, loads_of({}, queued(n), queued(9.0), queued(9.0)), ask(300, tpot_us=150e3)) for n in (1, 99)}
    assert tight <= {0, 1} and 0 not in loose
    alone = TierPartition()
    for idle in range(4):
        assert picks(alone, loads_of(*({} if worker == idle else queued(9.0) for worker in range(4)))) == idle
