"""One seed, one result; and leaping over equal steps changes nothing."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis_common.step_time import SEEDS
from hyperflexis_sim.cluster import Cluster
from hyperflexis_sim.experiment import Experiment
from hyperflexis_sim.policies import policy_of
from hyperflexis_sim.profiles import kv_tokens
from hyperflexis_sim.request import SimRequest
from hyperflexis_sim.tiers import FOUR_TASKS, promise
from hyperflexis_sim.worker_kind import WorkerKind
from hyperflexis_sim.workload import Workload, draw_mix

LENGTHS = {
    "chat": [(200, 80), (900, 150)],
    "code": [(120, 40)],
    "math": [(64, 100)],
    "summarise": [(2_500, 200), (6_000, 90)],
}
PROFILE = "h200/llama-3.1-8b/tp1"
NANOSECONDS = 5e-3
"""In microseconds; sums of step times round differently by a few."""


def experiment(policy: str = "hyperflexis", seed: int = 3, rate: float = 60.0, workers: int = 2) -> Experiment:
    workload = draw_mix(LENGTHS, FOUR_TASKS, rate, 4.0, seed)
    return Experiment("mix", workload, FOUR_TASKS, PROFILE, workers, policy, seed=seed)


@pytest.mark.parametrize("policy", ["hyperflexis", "jsq+qoserve", "power_of_two+fcfs512"])
def test_a_seed_gives_one_result(policy):
    assert experiment(policy).run() == experiment(policy).run()
    assert experiment(policy).run() != experiment(policy, seed=4).run()


def test_rows_say_what_they_are_of():
    rows = replace(experiment(), load=1.5).run()
    assert [row["tier"] for row in rows] == ["chat", "code", "math", "summarise", "all"]
    about = {"trace": "mix", "profile": PROFILE, "workers": 2, "load": 1.5, "policy": "hyperflexis", "seed": 3}
    assert all(about.items() <= row.items() for row in rows)
    assert rows[-1]["requests"] == 240 == sum(row["requests"] for row in rows[:-1])


def test_only_what_arrives_in_the_window_is_scored():
    whole = experiment()
    inside = np.count_nonzero((whole.workload.arrival_s >= 1) & (whole.workload.arrival_s < 3))
    row = replace(whole, scored_s=(1.0, 3.0)).run()[-1]
    assert row["requests"] == inside
    assert row["goodput_rps"] == pytest.approx(row["attained"] / 2)


def test_who_is_not_served_before_the_end_has_not_attained():
    row = replace(experiment("round_robin+fcfs2048", rate=400.0, workers=1), drain_s=0.0).run()[-1]
    assert row["unfinished"] > 100
    assert row["attained"] <= row["requests"] - row["unfinished"]


def test_time_is_told_as_it_goes_by():
    told: list[float] = []
    experiment().run(told.append)
    assert told == sorted(told) and len(told) >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": "fifo"}, "unknown policy 'fifo'"),
        ({"workers": 0}, "at least 1 worker"),
        ({"scored_s": (900.0, 901.0)}, "no request of mix arrives"),
        ({"profile": "abacus/llama/tp1"}, "abacus"),
    ],
)
def test_what_cannot_be_simulated_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        replace(experiment(), **change).run()


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


def served(drawn, policy_name: str, kv_tokens: int, noise: float, workers: int, leap: bool) -> list[SimRequest]:
    requests, at_us = [], 0.0
    for number, (gap_us, prompt, output, tier) in enumerate(drawn):
        at_us += gap_us
        kept = FOUR_TASKS[tier]
        slos = (kept.ttft_us, kept.tpot_us, kept.max_gap_us)
        requests.append(SimRequest(number, at_us, tier, "", prompt, output, *slos, 1.0, 1_000))
    policy = policy_of(policy_name)
    cluster = Cluster(
        [WorkerKind(SEEDS[PROFILE], kv_tokens)] * workers,
        policy.dispatch(0),
        policy.step,
        step_noise=noise,
        reserve_growth=policy.reserve_growth,
        leap=leap,
    )
    cluster.run(requests, 1e12)
    return requests


@settings(max_examples=40)
@given(
    drawn=REQUESTS,
    policy=st.sampled_from(
        ["hyperflexis", "round_robin+fcfs2048", "jsq+qoserve", "jsq+scorpio", "llmd_headroom+fcfs512"]
    ),
    kv_tokens=st.sampled_from([4_000, 9_000, 200_000]),
    noise=st.sampled_from([0.0, 0.05, 0.3]),
    workers=st.integers(1, 3),
)
def test_leaps_change_nothing(drawn, policy, kv_tokens, noise, workers):
    stepped = served(drawn, policy, kv_tokens, noise, workers, leap=False)
    leapt = served(drawn, policy, kv_tokens, noise, workers, leap=True)
    for one, other in zip(stepped, leapt, strict=True):
        assert (one.state, one.made, one.late_tokens) == (other.state, other.made, other.late_tokens)
        assert one.first_us == pytest.approx(other.first_us, abs=NANOSECONDS)
        assert one.last_us == pytest.approx(other.last_us, abs=NANOSECONDS)
        assert one.worst_gap_us == pytest.approx(other.worst_gap_us, abs=NANOSECONDS)


def test_a_worker_half_as_fast_is_not_where_the_short_ones_heap_up():
    """Its queue takes as long as the others', so that it would get whatever is served at once anyway, and all of their
    decodes. Turn and harm each keep some of that away, by more than six runs of twenty seconds differ by chance."""
    lengths = {
        "chat": [(400, 200), (1_800, 300)],
        "code": [(120, 60)],
        "math": [(64, 200)],
        "summarise": [(2_500, 300), (6_000, 200)],
    }

    def attained(policy: str) -> float:
        runs = [
            Experiment(
                "mix", workload, FOUR_TASKS, "a100/llama-3.1-8b/tp1", 4, policy, seed=seed, slow_worker=2.0
            ).run()
            for seed, workload in workloads.items()
        ]
        return fmean(rows[-1]["attainment"] for rows in runs)

    workloads = {seed: draw_mix(lengths, FOUR_TASKS, 45.0, 20.0, seed) for seed in range(3, 9)}
    others = ["harmless+hyperflexis", "whole_queue+hyperflexis", "round_robin+hyperflexis"]
    assert attained("hyperflexis") >= max(map(attained, others)) + 0.01


CROWDED = Workload(
    np.linspace(0.0, 0.2, 200), np.full(200, 4_000), np.full(200, 200), ["chat"] * 200, [""] * 200
)  # fmt: skip
"""More than one worker can begin in half a second."""


@pytest.mark.parametrize(("on_violation", "target"), [("downgrade:chat", "chat"), ("downgrade:loose", "loose")])
def test_tiers_that_fall_to_each_other_end_in_best_effort(on_violation, target):
    """As in the scheduler (test_scheduler_giving_up)."""
    chat = replace(promise("chat", 500, 50), on_violation=on_violation)
    loose = replace(promise("loose", 1_000, 50), on_violation="downgrade:chat")
    promises = {"chat": chat, "loose": loose}
    row = Experiment("crowd", CROWDED, promises, PROFILE, 1, "hyperflexis").run()[-1]
    assert row["refused"] == row["unfinished"] == 0
    assert row["best_effort"] > 50
    assert (row["downgraded"] > 0) == (target == "loose")


@pytest.mark.parametrize("policy", ["hyperflexis", "round_robin+fcfs2048", "jsq+qoserve"])
def test_what_no_worker_could_hold_is_refused_and_holds_up_nobody(policy):
    workload = Workload(
        np.array([0.0, 0.1, 0.2]), np.array([100, 900_000, 100]), np.array([5, 5, 5]), ["chat"] * 3, [""] * 3
    )  # fmt: skip
    row = Experiment("huge", workload, FOUR_TASKS, PROFILE, 1, policy).run()[-1]
    assert (row["attained"], row["refused"], row["unfinished"]) == (2, 1, 0)


def test_the_larger_of_two_kinds_of_workers_get_what_only_they_can_hold():
    size = kv_tokens("l40s/llama-3.1-8b/tp1")
    workload = Workload(
        np.arange(6.0), np.full(6, size + 1_000), np.full(6, 5), ["summarise"] * 6, [""] * 6
    )  # fmt: skip
    profile = "l40s/llama-3.1-8b/tp1+h200/llama-3.1-8b/tp1"
    promises = {"summarise": promise("summarise", 1e6, 150)}
    row = Experiment("large", workload, promises, profile, 2, "jsq+fcfs2048", drain_s=1e4).run()[-1]
    assert row["refused"] == row["unfinished"] == 0
