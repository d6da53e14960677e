"""Running requests go from worker to worker: no token is lost, no pool overdrawn, and leaps change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis_common.step_time import SEEDS
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_sim.cluster import Cluster
from hyperflexis_sim.engine import SimEngine
from hyperflexis_sim.experiment import Experiment
from hyperflexis_sim.policies import policy_of
from hyperflexis_sim.request import FINISHED, REFUSED, SimRequest
from hyperflexis_sim.tiers import FOUR_TASKS
from hyperflexis_sim.wires import WireRules
from hyperflexis_sim.worker_kind import WorkerKind
from hyperflexis_sim.workload import draw_mix

PROFILE = "h200/llama-3.1-8b/tp1"
NANOSECONDS = 5e-3
"""In microseconds; sums of step times round differently by a few."""
LENGTHS = {
    "chat": [(200, 80), (900, 150)],
    "code": [(120, 40)],
    "math": [(64, 100)],
    "summarise": [(2_500, 200), (6_000, 90)],
}
REQUESTS = st.lists(
    st.tuples(
        st.floats(0, 4e5),  # after the one before, in microseconds
        st.integers(1, 3_000),
        st.integers(1, 300),
        st.sampled_from(sorted(FOUR_TASKS)),
    ),
    min_size=1,
    max_size=25,
)
PLANS = [
    "hyperflexis@1p1d",
    "hyperflexis@2p1m",
    "hyperflexis@1p2d",
    "hyperflexis@adaptive",
    "hyperflexis@1p1d:short=true",
    "jsq+fcfs2048@1p1d",
    "jsq+qoserve@1p2d",
]
SLOW_WIRES = WireRules(gbps=2.0, host_workers=8)


def experiment(policy: str, rate: float = 60.0) -> Experiment:
    workload = draw_mix(LENGTHS, FOUR_TASKS, rate, 4.0, 3)
    return Experiment("mix", workload, FOUR_TASKS, PROFILE, 2, policy, seed=3)


def requests_of(drawn: Sequence[tuple[float, int, int, str]]) -> list[SimRequest]:
    requests, at_us = [], 0.0
    for number, (gap_us, prompt, output, tier) in enumerate(drawn):
        at_us += gap_us
        kept = FOUR_TASKS[tier]
        slos = (kept.ttft_us, kept.tpot_us, kept.max_gap_us)
        requests.append(SimRequest(number, at_us, tier, "", prompt, output, *slos, 1.0, 1_000))
    return requests


def cluster_of(name: str, kv_tokens: int, workers: int, **changes) -> Cluster:
    policy = policy_of(name)
    kinds = [WorkerKind(SEEDS[PROFILE], kv_tokens)] * workers
    settings = {"plan": policy.plan, "reserve_growth": policy.reserve_growth, "leap": True, **changes}
    return Cluster(kinds, policy.dispatch(0), policy.step, **settings)


class Watch:
    """Looks at every engine whenever one starts a step."""

    def __init__(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0.0
        start = SimEngine._start

        def started(engine: SimEngine, now_us: float) -> None:
            start(engine, now_us)
            for each in cluster.engines:
                self.most = max(self.most, each.kv_used / each.kv_tokens)
                assert each.kv_used <= each.kv_tokens
                assert each.room.held_tokens >= 0

        monkeypatch.setattr(SimEngine, "_start", started)


def check_all_is_over(cluster: Cluster, requests: Sequence[SimRequest]) -> None:
    assert {request.state for request in requests} <= {FINISHED, REFUSED}
    for request in requests:
        if request.state == FINISHED:
            assert request.made == request.output_tokens
    for engine in cluster.engines:
        assert engine.kv_used == 0 and not engine.moves.watched and not len(engine.waiting)
    if cluster.moves is not None:
        loads, among = cluster.loads, np.arange(len(cluster.engines))
        assert not cluster.moves.book.entries
        assert loads.of(columns.ARRIVING, among).tolist() == [0.0] * len(among)
        assert np.isinf(loads.of(columns.TIGHTEST, among)).all()
        assert all(cluster.moves.links.moves(slot) == 0 for slot in among.tolist())


@settings(max_examples=60)
@given(
    drawn=REQUESTS,
    name=st.sampled_from(PLANS),
    kv_tokens=st.sampled_from([4_000, 9_000, 200_000]),
    noise=st.sampled_from([0.0, 0.05, 0.3]),
    workers=st.integers(2, 4),
    wires=st.sampled_from([WireRules(), SLOW_WIRES]),
)
def test_leaps_change_nothing_with_moves(drawn, name, kv_tokens, noise, workers, wires):
    ends = []
    for leap in (False, True):
        requests = requests_of(drawn)
        cluster = cluster_of(name, kv_tokens, workers, leap=leap, step_noise=noise, wires=wires)
        cluster.run(requests, 1e12)
        ends.append(requests)
    for one, other in zip(*ends, strict=True):
        assert (one.state, one.made, one.late_tokens) == (other.state, other.made, other.late_tokens)
        assert (one.worker, one.migrations) == (other.worker, other.migrations)
        for field in ("first_us", "last_us", "worst_gap_us", "longest_move_us"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), abs=NANOSECONDS)


@settings(max_examples=60)
@given(
    drawn=REQUESTS,
    name=st.sampled_from(PLANS),
    kv_tokens=st.sampled_from([3_500, 6_000, 200_000]),
    workers=st.integers(2, 4),
    leaves=st.lists(st.tuples(st.floats(0, 1e6), st.just(1)), max_size=1),
)
def test_no_token_is_lost_and_no_pool_overdrawn(drawn, name, kv_tokens, workers, leaves):
    requests = requests_of(drawn)
    name = "hyperflexis@1p2m:short=true" if leaves else name
    cluster = cluster_of(name, kv_tokens, workers, leaves=leaves)
    with pytest.MonkeyPatch.context() as patch:
        Watch(cluster, patch)
        cluster.run(requests, 1e12)
    check_all_is_over(cluster, requests)


def swapping(cluster: Cluster, requests: list[SimRequest], every_us: float) -> None:
    """Tells both workers, again and again, to swap all that they have."""

    def swap(now_us: float) -> None:
        assert cluster.moves is not None
        if any(request.state not in (FINISHED, REFUSED) for request in requests):
            cluster.events.later(now_us + every_us, swap)
        for request in requests:
            if request.made and request.state not in (FINISHED, REFUSED):
                moves, slot = cluster.moves.moves, request.worker
                if request not in moves and request in cluster.engines[slot].table:
                    moves.begin(request, slot, 1 - slot, now_us)

    cluster.events.later(1_000.0, swap)


@settings(max_examples=40)
@given(drawn=REQUESTS, kv_tokens=st.sampled_from([3_500, 5_000, 20_000]), every_us=st.sampled_from([3e3, 2e4, 1e5]))
def test_two_workers_that_swap_all_they_have_get_on(drawn, kv_tokens, every_us):
    requests = requests_of(drawn)
    cluster = cluster_of("hyperflexis@mixed:move=none", kv_tokens, 2)
    swapping(cluster, requests, every_us)
    with pytest.MonkeyPatch.context() as patch:
        Watch(cluster, patch)
        cluster.run(requests, 1e10)
    assert {request.state for request in requests} <= {FINISHED, REFUSED}
    assert all(request.made == request.output_tokens for request in requests if request.state == FINISHED)
    assert all(engine.kv_used == 0 for engine in cluster.engines)


@pytest.mark.parametrize("policy", ["hyperflexis@1p1d", "hyperflexis@adaptive", "jsq+fcfs2048@1p1d"])
def test_a_seed_gives_one_result_with_moves(policy):
    assert experiment(policy).run() == experiment(policy).run()


def test_a_split_hands_over_and_a_pause_is_short():
    row = replace(experiment("hyperflexis@1p1d", rate=20.0)).run()[-1]
    assert row["migrated"] > 0.9 * row["requests"]
    assert row["unfinished"] == 0 and row["attainment"] > 0.95
    # Two steps of a loaded worker, and the last blocks.
    assert 1.0 < row["move_p99_ms"] < 60.0


def test_a_slow_link_moves_later_and_harms_nobody_more():
    fast = experiment("hyperflexis@1p1d", rate=20.0).run()[-1]
    slow = replace(experiment("hyperflexis@1p1d", rate=20.0), wires=WireRules(gbps=5.0)).run()[-1]
    assert slow["migrated"] > 0
    assert slow["attainment"] > fast["attainment"] - 0.05


def test_on_a_slow_link_a_pause_is_a_few_milliseconds_longer():
    lengths = {name: [(4_000, 100)] for name in LENGTHS}
    workload = draw_mix(lengths, FOUR_TASKS, 10.0, 4.0, 3)
    rows = []
    for gbps in (330.0, 25.0):
        asked = Experiment("mix", workload, FOUR_TASKS, PROFILE, 2, "hyperflexis@1p1d", wires=WireRules(gbps=gbps))
        rows.append(asked.run()[-1])
    assert all(row["migrated"] > 0.9 * row["requests"] for row in rows)
    assert rows[1]["move_p99_ms"] < rows[0]["move_p99_ms"] + 15.0


def test_who_leaves_is_empty_at_once_if_its_requests_may_move():
    stays = replace(experiment("hyperflexis@mixed:move=none", rate=20.0), leaves=[(2.0, 1)]).run()[-1]
    moves = replace(experiment("hyperflexis@mixed:move=drain", rate=20.0), leaves=[(2.0, 1)]).run()[-1]
    assert moves["empty_after_s"] < 0.7 < stays["empty_after_s"]
    assert moves["unfinished"] == 0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hyperflexis@2p", "somebody must prefill, and somebody decode"),
        ("hyperflexis@half", "roles are mixed, adaptive, or counts"),
        ("hyperflexis@mixed:move=boredom", "unknown trigger 'boredom'"),
        ("hyperflexis@mixed:speed=1", "unknown option 'speed=1'"),
        ("jsq+fcfs2048@adaptive", "only hyperflexis has roles that adapt"),
        ("fifo@2p2d", "unknown policy 'fifo'"),
    ],
)
def test_a_plan_that_is_none_is_told(name, says):
    with pytest.raises(ValueError, match=says):
        policy_of(name)
