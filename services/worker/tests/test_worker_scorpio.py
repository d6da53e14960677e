"""SCORPIO's rules, each by an example that can be worked by hand."""

from __future__ import annotations

import math

import pytest
from prompt_queue import Pool, Prompt, decodes_of, queue_of

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_worker.steps.prefill_queue import PrefillQueue
from hyperflexis_worker.steps.scorpio_policy import ScorpioPolicy
from hyperflexis_worker.steps.step_policy import NO_DECODES

PREFILL = StepTimeModel(1_000.0, 10.0, 10.0, 0.0, 0.0, host_us=0.0)
"""1 ms and 10 us a token."""
DECODE = StepTimeModel(1_000.0, 0.0, 0.0, 0.0, 0.0, 1_000.0, host_us=0.0)
"""1 ms and 1 ms a decode."""


def chosen(choice) -> list[tuple[int, int]]:
    return [(chunk.request.number, chunk.tokens) for chunk in choice.chunks]


def refused(choice) -> list[int]:
    return [given_up.request.number for given_up in choice.given_up]


def test_refuses_in_order_of_arrival_and_forgets_whom_it_refused():
    # Behind 4,000 tokens, 1,000 more take 51 ms; with the margin that is 101 ms. Deadlines would put 1 and 2 first.
    first = Prompt(0, 4_000)
    second = Prompt(1, 1_000, ttft_us=100e3, arrival_us=10.0)
    third = Prompt(2, 1_000, ttft_us=102e3, arrival_us=20.0)
    choice = ScorpioPolicy(PREFILL, 512, 256).choose(0.0, NO_DECODES, queue_of(first, second, third), Pool())
    assert refused(choice) == [1]
    numbers = choice.given_up[0].numbers
    assert numbers == {"predicted_ttft_us": 50_990.0, "late_us": 990.0, "tokens_ahead": 4_000.0}


def test_counts_the_time_that_has_passed_and_the_attention():
    model = StepTimeModel(1_000.0, 10.0, 10.0, 0.01, 0.0, host_us=0.0)  # 1,000 tokens: 11 ms and 5 ms of pairs
    at_once = ScorpioPolicy(model, 512, 256)
    prompt = Prompt(0, 1_000, ttft_us=70e3)
    assert refused(at_once.choose(3_999.0, NO_DECODES, queue_of(prompt), Pool())) == []
    assert refused(at_once.choose(4_001.0, NO_DECODES, queue_of(prompt), Pool())) == [0]


def test_keeps_those_begun_and_those_that_have_answered_in_part():
    begun, answered = Prompt(0, 100, ttft_us=1.0, computed=10), Prompt(1, 100, ttft_us=1.0, made=3)
    choice = ScorpioPolicy(PREFILL, 512, 256).choose(1e6, NO_DECODES, queue_of(begun, answered), Pool())
    assert refused(choice) == []
    assert chosen(choice) == [(0, 100), (1, 100)]


def test_least_deadline_first_begun_before_all_within_the_budget():
    prompts = Prompt(0, 300, ttft_us=900e3), Prompt(1, 300, ttft_us=500e3), Prompt(2, 300, ttft_us=800e3, computed=5)
    policy = ScorpioPolicy(PREFILL, 512, 256)
    assert chosen(policy.choose(0.0, NO_DECODES, queue_of(*prompts), Pool())) == [(2, 300), (1, 212)]
    decodes = decodes_of(*[50e3] * 12)
    assert chosen(policy.choose(0.0, decodes, queue_of(*prompts), Pool())) == [(2, 300), (1, 200)]


def test_loose_decodes_save_up_for_a_step():
    policy, decodes = ScorpioPolicy(PREFILL, 512, 256), decodes_of(20e3, 40e3, 80e3)
    steps = [policy.choose(0.0, decodes, PrefillQueue(), Pool()).decode for _ in range(4)]
    assert [None if who is None else who.tolist() for who in steps] == [
        [True, False, False],
        [True, True, False],
        [True, False, False],
        None,  # everybody
    ]
    assert decodes.credit.tolist() == [0.0, 0.0, 0.0]


def test_all_of_one_tpot_decode_in_each_step():
    assert ScorpioPolicy(PREFILL, 512, 256).choose(0.0, decodes_of(40e3, 40e3), PrefillQueue(), Pool()).decode is None


def test_a_loose_request_counts_as_part_of_one():
    # 1.3 (1 + VBS) < 9.9 ms: VBS below 6.615. Five of 10 ms, and each of 20 ms is a half.
    prompts = [Prompt(number, 10, tpot_us=20e3) for number in range(5)]
    choice = ScorpioPolicy(DECODE, 512, 256).choose(0.0, decodes_of(*[10e3] * 5), queue_of(*prompts), Pool())
    assert [number for number, _ in chosen(choice)] == [0, 1, 2]


def test_a_tighter_one_is_held_against_all_and_nobody_overtakes_it():
    # Of 5 ms, it would make the five of 10 ms count half: 1.3 (1 + 3.5) = 5.85 ms, above 4.95.
    prompts = Prompt(0, 10, ttft_us=500e3, tpot_us=5e3), Prompt(1, 10, tpot_us=20e3)
    choice = ScorpioPolicy(DECODE, 512, 256).choose(0.0, decodes_of(*[10e3] * 5), queue_of(*prompts), Pool())
    assert chosen(choice) == []


def test_the_mean_step_grows_with_the_output_expected():
    # 1.3 (1 + 2 * 1000 * (2 * 1000 + out) / 2 * 1e-6 ms) < 9.9: out below 4615.
    model = StepTimeModel(1_000.0, 0.0, 0.0, 0.0, 1.0, 0.0, host_us=0.0)
    decodes = decodes_of(10e3, context=1_000.0)
    for output, lets_in in ((4_600, True), (4_630, False)):
        prompt = Prompt(0, 1_000, tpot_us=10e3, output_tokens=output, max_tokens=10_000)
        oracle = ScorpioPolicy(model, 2_048, 256, oracle=True)
        assert bool(oracle.choose(0.0, decodes, queue_of(prompt), Pool()).chunks) == lets_in
        learned = ScorpioPolicy(model, 2_048, 256)
        for _ in range(2_000):
            learned.learn_output("chat", output)
        assert bool(learned.choose(0.0, decodes, queue_of(prompt), Pool()).chunks) == lets_in


def test_stops_where_the_pool_or_the_engine_is_full():
    prompts = [Prompt(number, 10) for number in range(5)]
    assert len(ScorpioPolicy(PREFILL, 512, 256).choose(0.0, NO_DECODES, queue_of(*prompts), Pool(2)).chunks) == 2
    decodes = decodes_of(50e3, 50e3)
    assert len(ScorpioPolicy(PREFILL, 512, 5).choose(0.0, decodes, queue_of(*prompts), Pool()).chunks) == 3


def test_nothing_to_do_is_no_step():
    choice = ScorpioPolicy(PREFILL, 512, 256).choose(0.0, NO_DECODES, PrefillQueue(), Pool())
    assert (choice.chunks, choice.given_up, choice.decode) == ([], [], None)


def test_with_nobody_running_the_first_is_let_in_whatever_its_tpot():
    prompts = Prompt(0, 10, tpot_us=1.0), Prompt(1, 10, tpot_us=0.0)
    assert chosen(ScorpioPolicy(DECODE, 512, 256).choose(0.0, NO_DECODES, queue_of(*prompts), Pool())) == [(0, 10)]


def test_without_a_tpot_all_run_and_beside_one_they_run_at_times():
    policy = ScorpioPolicy(DECODE, 512, 256)
    choice = policy.choose(0.0, decodes_of(math.inf, math.inf), queue_of(Prompt(0, 10, tpot_us=math.inf)), Pool())
    assert choice.decode is None
    assert chosen(choice) == [(0, 10)]
    decodes = decodes_of(250e3, math.inf)  # counted as 1 s
    assert [policy.choose(0.0, decodes, PrefillQueue(), Pool()).decode is None for _ in range(4)] == [
        False,
        False,
        False,
        True,
    ]


def test_no_step_is_empty():
    # The tightest is a prompt that has begun and finds no room: the decodes go on, credit or not.
    begun = Prompt(0, 10, tpot_us=10e3, computed=5)
    choice = ScorpioPolicy(DECODE, 512, 256).choose(0.0, decodes_of(50e3), queue_of(begun), Pool(0))
    assert chosen(choice) == []
    assert choice.decode is None


@pytest.mark.parametrize("limits", [(0, 256), (512, 0)])
def test_limits_below_one_are_an_error(limits):
    with pytest.raises(ValueError, match="at least 1"):
        ScorpioPolicy(PREFILL, *limits)
