"""Prompts that begin alike: what a worker keeps is not computed again, takes room once, and draws requests to it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hyperflexis_common.step_time import SEEDS
from hyperflexis_sim.cluster import Cluster
from hyperflexis_sim.engine_room import EngineRoom
from hyperflexis_sim.policies import policy_of
from hyperflexis_sim.prefix_cache import BLOCK_TOKENS, PrefixCache
from hyperflexis_sim.prefix_rules import PrefixRules
from hyperflexis_sim.request import FINISHED, REFUSED, SimRequest
from hyperflexis_sim.tiers import FOUR_TASKS, LONG_CONTEXT
from hyperflexis_sim.wires import WireRules
from hyperflexis_sim.worker_kind import WorkerKind
from hyperflexis_sim.workload import from_trace

PROFILE = "h200/llama-3.1-8b/tp1"
NANOSECONDS = 5e-3
"""In microseconds; sums of step times round differently by a few."""
PROMISE = LONG_CONTEXT["batch"]


def chain(family: int, blocks: int) -> tuple[bytes, ...]:
    return tuple(family.to_bytes(8, "big") + at.to_bytes(8, "big") for at in range(blocks))


def request(number: int, at_us: float, family: int, prompt: int, output: int = 5) -> SimRequest:
    slos = PROMISE.ttft_us, PROMISE.tpot_us, PROMISE.max_gap_us
    prefix = chain(family, prompt // BLOCK_TOKENS)
    return SimRequest(number, at_us, "batch", "", prompt, output, *slos, 1.0, 1_000, prefix=prefix)


def served(requests: Sequence[SimRequest], workers: int, kv_tokens: int = 400_000, **changes) -> Cluster:
    policy = policy_of(changes.pop("policy", "hyperflexis"))
    kinds = [WorkerKind(SEEDS[PROFILE], kv_tokens)] * workers
    settings = {"step_noise": 0.0, "reserve_growth": policy.reserve_growth, "plan": policy.plan, "caches": True}
    cluster = Cluster(kinds, policy.dispatch(0), policy.step, **{**settings, **changes})
    cluster.run(requests, 1e12)
    return cluster


def test_what_is_cached_is_not_computed_again():
    first, again = request(0, 0.0, 1, 10_240), request(1, 1e6, 1, 10_240)
    served([first, again], 1)
    assert (first.cached_tokens, again.cached_tokens) == (0, 19 * BLOCK_TOKENS)  # its last token is computed
    assert again.first_us - again.arrival_us < 0.2 * (first.first_us - first.arrival_us)
    assert again.saved_us > 0


def test_without_caches_nothing_is_found():
    requests = [request(0, 0.0, 1, 10_240), request(1, 1e6, 1, 10_240)]
    served(requests, 1, caches=False)
    assert [each.cached_tokens for each in requests] == [0, 0]


def test_what_two_share_takes_its_room_once():
    requests = [request(0, 0.0, 1, 5_120, 400), request(1, 1e6, 1, 5_120, 400)]
    cluster, used = served([], 1), []
    cluster.events.at(1.5e6, lambda: used.append((cluster.engines[0].room.filled, cluster.engines[0].kv_used)))
    cluster.run(requests, 1e12)
    ((filled, own),) = used
    assert filled - own == 9 * BLOCK_TOKENS


def test_the_least_recently_used_leaves_when_room_is_wanted():
    prompts = [request(0, 0.0, 1, 4_096), request(1, 1e6, 2, 4_096), request(2, 2e6, 1, 4_096)]
    large = request(3, 3e6, 3, 10_500)
    last = [request(4, 4e6, 1, 4_096), request(5, 5e6, 2, 4_096)]
    served([*prompts, large, *last], 1, kv_tokens=16_384)
    assert prompts[2].cached_tokens == 7 * BLOCK_TOKENS
    assert last[1].cached_tokens < last[0].cached_tokens == 7 * BLOCK_TOKENS


def test_placement_goes_where_the_prefix_is():
    families = [0, 1, 1, 0, 0, 1]

    def workers(rules: PrefixRules) -> list[int]:
        # The first two come together, and so to different workers; the others find everybody idle.
        times_us = [0.0, 1e4, *(1e6 * at for at in range(1, 5))]
        requests = [request(at, times_us[at], family, 8_192) for at, family in enumerate(families)]
        served(requests, 2, prefixes=rules)
        return [each.worker for each in requests]

    aware, blind = workers(PrefixRules()), workers(PrefixRules(aware=False))
    assert aware == [aware[family] for family in families]
    assert blind != aware


@pytest.mark.parametrize(("gbps", "cached"), [(330.0, 31 * BLOCK_TOKENS), (0.1, 0)])
def test_a_prefix_is_pulled_where_that_is_quicker(gbps, cached):
    first, other = request(0, 0.0, 1, 16_384), request(1, 0.0, 2, 16_384)
    long, again = request(2, 1e6, 1, 100_000), request(3, 1.1e6, 1, 16_384)
    wires = WireRules(gbps=gbps, between_gbps=gbps)
    served([first, other, long, again], 2, prefixes=PrefixRules(pull=True), wires=wires)
    assert first.worker == long.worker != again.worker  # who has it is busy with another one for seconds
    assert again.somewhere_tokens == 31 * BLOCK_TOKENS
    assert (again.pulled_tokens, again.cached_tokens) == (cached, cached)


@pytest.mark.parametrize("leap", [False, True])
@pytest.mark.parametrize(("asked_us", "blocks"), [(1e6, 3), (6e6, 2), (8e6, 2)], ids=["before", "meanwhile", "after"])
def test_what_decodes_grow_into_is_cached_no_more(asked_us, blocks, leap):
    """A leap of a thousand steps, asked in the middle of it and after it."""
    first, grows, again = request(0, 0.0, 1, 2_048), request(1, 1e5, 2, 600, 1_000), request(2, asked_us, 1, 2_048)
    served([first, grows, again], 1, kv_tokens=6 * BLOCK_TOKENS, leap=leap, reserve_growth=False)
    assert (again.somewhere_tokens, again.cached_tokens) == (blocks * BLOCK_TOKENS,) * 2


REQUESTS = st.lists(
    st.tuples(
        st.floats(0, 4e5),  # after the one before, in microseconds
        st.integers(0, 3),  # family
        st.integers(1, 6_000),
        st.integers(1, 200),
        st.sampled_from(sorted(FOUR_TASKS)),
    ),
    min_size=1,
    max_size=25,
)


def requests_of(drawn: Sequence[tuple[float, int, int, int, str]]) -> list[SimRequest]:
    requests, at_us = [], 0.0
    for number, (gap_us, family, prompt, output, tier) in enumerate(drawn):
        at_us += gap_us
        kept = FOUR_TASKS[tier]
        slos = (kept.ttft_us, kept.tpot_us, kept.max_gap_us)
        prefix = chain(family, prompt // BLOCK_TOKENS)
        requests.append(SimRequest(number, at_us, tier, "", prompt, output, *slos, 1.0, 1_000, prefix=prefix))
    return requests


OUTGROWN = [
    (0.0, 1, 1356, 138, "code"),
    (117651.0, 0, 541, 86, "code"),
    (290163.0, 3, 1594, 73, "chat"),
    (215234.0, 2, 3657, 38, "chat"),
    (257909.86793282672, 0, 310, 11, "chat"),
    (528.0, 3, 4, 26, "summarise"),
    (18.0, 0, 1, 1, "chat"),
    *[(0.0, 0, 1, 1, "chat")] * 10,
    (69845.0, 0, 513, 1, "chat"),
]
"""Decodes that grow in a leap and then end: what they pushed out of the cache is wanted after it."""


@settings(max_examples=60, deadline=None)
@example(drawn=OUTGROWN, name="jsq+qoserve", kv_tokens=8_000, rules=PrefixRules(pull=True), gbps=2.0)
@given(
    drawn=REQUESTS,
    name=st.sampled_from(["hyperflexis", "jsq+fcfs2048", "hyperflexis@1p1d", "jsq+qoserve"]),
    kv_tokens=st.sampled_from([8_000, 13_000, 200_000]),
    rules=st.sampled_from([PrefixRules(), PrefixRules(aware=False), PrefixRules(pull=True)]),
    gbps=st.sampled_from([2.0, 330.0]),
)
def test_leaps_change_nothing_and_no_block_is_lost(drawn, name, kv_tokens, rules, gbps):
    ends = []
    for leap in (False, True):
        requests = requests_of(drawn)
        cluster = served(
            requests, 2, kv_tokens, policy=name, leap=leap, step_noise=0.05, prefixes=rules, wires=WireRules(gbps=gbps)
        )
        assert {each.state for each in requests} <= {FINISHED, REFUSED}
        for engine in cluster.engines:
            assert isinstance(engine.cache, PrefixCache) and engine.kv_used == 0
            engine.cache.check_integrity()
            engine.cache.fit(0)
            assert engine.cache.pool.free == engine.cache.pool.usable and not engine.room.awaited
        ends.append(requests)
    for one, other in zip(*ends, strict=True):
        assert (one.state, one.made, one.worker) == (other.state, other.made, other.worker)
        assert (one.cached_tokens, one.pulled_tokens) == (other.cached_tokens, other.pulled_tokens)
        for field in ("first_us", "last_us"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), abs=NANOSECONDS)


def test_the_room_is_never_overdrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    most, begin = [0.0], EngineRoom.begin

    def begun(room: EngineRoom) -> None:
        begin(room)
        most[0] = max(most[0], room.used / room.kv_tokens)

    monkeypatch.setattr(EngineRoom, "begin", begun)
    requests = [request(number, 2e4 * number, number % 3, 700 * (1 + number % 9), 60) for number in range(60)]
    served(requests, 2, kv_tokens=16_384)
    assert 0.5 < most[0] <= 1.0
    assert {each.state for each in requests} <= {FINISHED, REFUSED}


def test_a_workload_keeps_names_and_prompts_together():
    class Row:
        def __init__(self, arrival_s: float, prompt_tokens: int) -> None:
            self.arrival_s, self.prompt_tokens, self.output_tokens, self.tier = arrival_s, prompt_tokens, 1, ""

    names = [chain(1, 3), chain(2, 1), chain(3, 2)]
    rows = [Row(2.0, 1_536), Row(0.0, 512), Row(1.0, 1_024)]
    workload = from_trace(rows, LONG_CONTEXT, 0, prefixes=names).at_rate(4.0).within(0.4)
    assert workload.prefixes == [names[1], names[2]]
    assert [each.prefix for each in workload.requests(LONG_CONTEXT)] == [names[1], names[2]]
