"""Every policy of the registry serves what it should, and leaves nothing behind."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hyperflexis_common.step_time import SEEDS
from hyperflexis_sim.cluster import Cluster
from hyperflexis_sim.policies import POLICIES, policy_of
from hyperflexis_sim.request import FINISHED, REFUSED, SimRequest
from hyperflexis_sim.worker_kind import WorkerKind
from hyperflexis_worker.steps.slo_policy import SloPolicy

TIERS = {"chat": (5e5, 5e4, 1_500, 150), "code": (5e5, 3e4, 130, 50), "summarise": (15e6, 15e4, 2_500, 200)}
"""TTFT, TPOT; means of prompt and output tokens."""
NAMES = {
    "hyperflexis",
    "round_robin+hyperflexis",
    "tiers_apart+hyperflexis",
    "whole_queue+hyperflexis",
    "harmless+hyperflexis",
    "hyperflexis+admission512",
    "hyperflexis+admission1024",
    "hyperflexis+admission2048",
    "hyperflexis+admission8192",
    "round_robin+fcfs2048",
    "round_robin+fcfs512",
    "least_requests+fcfs2048",
    "jsq+edf512",
    "jsq+fcfs2048",
    "jsq+srpf512",
    "jsq+scorpio",
    "jsq+qoserve_literal",
    "jsq+qoserve",
    "power_of_two+fcfs512",
    "llmd+fcfs512",
    "llmd_headroom+fcfs512",
    "llmd_headroom+qoserve",
    "dynamo+fcfs512",
    "polyserve+fcfs512",
    "llumnix+fcfs512",
}


def requests_of(count: int, rate: float, seed: int = 1) -> list[SimRequest]:
    random = np.random.default_rng(seed)
    arrivals_us = np.cumsum(random.exponential(1e6 / rate, count))
    requests = []
    for number, arrival_us in enumerate(arrivals_us.tolist()):
        tier = list(TIERS)[number % len(TIERS)]
        ttft_us, tpot_us, prompt, output = TIERS[tier]
        prompt = int(prompt * random.uniform(0.5, 1.5))
        output = int(output * random.uniform(0.1, 2))
        requests.append(SimRequest(number, arrival_us, tier, "", prompt, output, ttft_us, tpot_us, 6e5, 1.0, 1_000))
    return requests


def serve(name: str, requests: list[SimRequest], kv_tokens: int, seed: int = 0) -> Cluster:
    policy = policy_of(name)
    kinds = [WorkerKind(SEEDS["h200/llama-3.1-8b/tp1"], kv_tokens)] * 2
    cluster = Cluster(kinds, policy.dispatch(seed), policy.step, seed=seed, reserve_growth=policy.reserve_growth)
    cluster.run(requests, 1e12)
    return cluster


def test_the_registry_is_the_list():
    assert set(POLICIES) == NAMES
    assert all(policy.description for policy in POLICIES.values())


def test_an_unknown_name_is_answered_with_the_known():
    with pytest.raises(
        ValueError, match=r"unknown policy 'fifo'; known: hyperflexis, .*round_robin\+hyperflexis, .*llumnix"
    ):
        policy_of("fifo")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_light_load_is_served_to_the_end_and_in_time(name):
    requests = requests_of(60, rate=4.0)
    cluster = serve(name, requests, kv_tokens=200_000)
    assert {request.state for request in requests} == {FINISHED}
    assert np.mean([request.attained for request in requests]) > 0.95
    assert all(engine.kv_used == 0 for engine in cluster.engines)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_overload_of_a_small_pool_leaves_nobody_behind(name):
    requests = requests_of(150, rate=200.0)
    cluster = serve(name, requests, kv_tokens=9_000)
    assert {request.state for request in requests} <= {FINISHED, REFUSED}
    assert sum(request.state == FINISHED for request in requests) > 20
    assert all(engine.kv_used == 0 and not len(engine.waiting) for engine in cluster.engines)


@pytest.mark.parametrize("name", ["power_of_two+fcfs512", "llmd_headroom+qoserve", "jsq+scorpio"])
def test_a_seed_gives_one_result(name):
    ends = []
    for _ in range(2):
        requests = requests_of(60, rate=30.0)
        serve(name, requests, kv_tokens=50_000, seed=5)
        ends.append([(request.worker, request.last_us) for request in requests])
    assert ends[0] == ends[1]


def test_dispatchers_ask_with_the_mean_output_of_what_finished():
    requests = requests_of(60, rate=4.0)
    cluster = serve("jsq+edf512", requests, kv_tokens=200_000)
    code = [request.output_tokens for request in requests if request.tier == "code"]
    assert cluster.lengths.mean("code") == pytest.approx((128 + sum(code)) / (1 + len(code)))


def test_rules_are_changed_by_name():
    model = SEEDS["h200/llama-3.1-8b/tp1"]
    step = policy_of("hyperflexis:work_order=0:give_up=false:least_chunk=16").step(model)
    assert isinstance(step, SloPolicy)
    assert (step.rules.work_order, step.rules.give_up, step.rules.least_chunk) == (0.0, False, 16)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hyperflexis:speed=1", "unknown rule 'speed'; known: slack_share"),
        ("hyperflexis:work_order=quick", "rule work_order is of type float, not 'quick'"),
        ("hyperflexis:give_up=1", "rule give_up is of type bool, not '1'"),
        ("jsq+scorpio:work_order=1", "'jsq+scorpio' has no rules to change"),
    ],
)
def test_a_rule_that_is_none_is_told(name: str, says: str):
    with pytest.raises(ValueError, match=re.escape(says)):
        policy_of(name)
