"""The step policy where somebody found no room in the pool: the pool is what Moore and Hodgson's rule shares out."""

from __future__ import annotations

import pytest
from prompt_queue import Pool, Prompt, queue_of

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.slo_rules import SloRules
from hyperflexis_worker.steps.step_policy import NO_DECODES, StepChoice

MODEL = StepTimeModel(1_000.0, 10.0, 10.0, 0.0, 0.0, host_us=0.0)
"""1 ms and 10 us a token."""


def policy(rules: SloRules | None = None) -> SloPolicy:
    return SloPolicy(MODEL, 100_000, 1_000, rules=rules)


def full(pool_tokens: int) -> Pool:
    pool = Pool(places=0)
    pool.kv_tokens = pool_tokens
    return pool


def test_where_the_pool_is_full_who_needs_most_of_it_for_longest_is_left_behind() -> None:
    """129 tokens are expected of each, in steps of 1 ms. The GPU has time for all three. Of a pool of 1,000 the long
    ones take (600 + 64.5) / 1,000 for 135 ms and (650 + 64.5) / 1,000 for 135.5 ms: 90 and 97 ms of all of it; the
    short one takes 21. With a step that is 121 ms for the two of them, and they have 122; the third has 117."""
    ages = {"arrival_us": -50_000}
    short, long = Prompt(0, 100, ttft_us=175_000, **ages), Prompt(1, 600, ttft_us=180_000, **ages)
    longer = Prompt(2, 650, ttft_us=175_000, **ages)
    queue, ours = queue_of(short, long, longer), policy()
    assert not ours.choose(0.0, NO_DECODES, queue, full(1_000)).given_up, "nobody was refused room before"
    told = ours.choose(0.0, NO_DECODES, queue, full(1_000)).given_up
    assert [(each.request, each.reason) for each in told] == [(longer, "left_behind")]
    first_us = 10_000 + 21_400 + 89_700 + 6_500 / ours.prefill_share
    assert told[0].numbers["predicted_ttft_us"] == pytest.approx(50_000 + first_us, rel=0.01)
    assert told[0].numbers["late_us"] > 0
    ours.choose(0.0, NO_DECODES, queue, Pool())
    assert not ours.choose(0.0, NO_DECODES, queue, full(1_000)).given_up, "there was room in the step before"


def test_nobody_is_left_behind_for_what_it_takes_of_a_pool_itself() -> None:
    lone, ours = queue_of(Prompt(0, 6_000, ttft_us=150_000, arrival_us=-40_000)), policy()
    for _ in range(3):
        assert not ours.choose(0.0, NO_DECODES, lone, full(10_000)).given_up


def test_a_full_pool_is_no_reason_to_forget_the_gpu() -> None:
    """A pool of a million has room for all of them one after the other, the GPU time for six."""
    many = queue_of(*(Prompt(n, 1_000, ttft_us=100_000, max_tokens=2) for n in range(100)))
    ours = policy(SloRules(patience=0.0))
    ours.choose(0.0, NO_DECODES, many, full(1_000_000))
    assert len(ours.choose(0.0, NO_DECODES, many, full(1_000_000)).given_up) > 90


def test_a_worker_whose_pool_is_full_does_not_take_its_gpu_for_slow() -> None:
    ours, queue = policy(), queue_of(Prompt(0, 1_000))
    before = ours.prefill_share
    for pool, same in ((Pool(places=0), True), (Pool(), False)):
        ours.choose(0.0, NO_DECODES, queue, pool)
        for _ in range(50):
            ours.stepped(StepChoice(), NO_DECODES, True, predicted_us=20_000.0, took_us=20_000.0)
        assert (ours.prefill_share == before) == same
