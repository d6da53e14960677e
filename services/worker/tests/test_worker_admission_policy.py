"""Engines that fill their steps themselves: who is handed to them, and when."""

from __future__ import annotations

import numpy as np
from prompt_queue import Pool, Prompt, queue_of

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_worker.steps.admission_policy import AdmissionPolicy
from hyperflexis_worker.steps.slo_rules import SloRules
from hyperflexis_worker.steps.step_policy import NO_DECODES, Decodes, StepChoice

MODEL = StepTimeModel(1_000.0, 10.0, 10.0, 0.0, 0.0, host_us=0.0)
"""1 ms and 10 us a token."""
TPOT_US = 30_000.0


def policy(max_tokens: int = 1_000, floor: float = 0.7) -> AdmissionPolicy:
    rules = SloRules(slack_share=1.0, margin_us=0.0, floor_share=floor)
    return AdmissionPolicy(MODEL, max_tokens, 100, rules=rules)


def decoding(slack_us: float, pause_us: float = 1e9) -> Decodes:
    return Decodes(np.array([slack_us]), np.array([pause_us]), np.array([TPOT_US]), 0.0, np.zeros(1))


def chunks(choice: StepChoice) -> list[tuple[int, int]]:
    return [(chunk.request.number, chunk.tokens) for chunk in choice.chunks]


def test_a_prompt_is_handed_over_when_decodes_can_afford_all_of_it() -> None:
    # 45 ms of prefill in five steps of 1.01 ms more, in which a decode makes five tokens: four of them pay 120 ms.
    queue = queue_of(Prompt(0, 4_500, ttft_us=1e6))
    late_us = 45_000 + 5 * 1_010 - 4 * TPOT_US
    assert chunks(policy(floor=0.0).choose(0.0, decoding(late_us), queue, Pool())) == [(0, 999)]
    assert chunks(policy(floor=0.0).choose(0.0, decoding(late_us - 1), queue, Pool())) == []


def test_steps_longer_than_the_longest_pause_are_not_begun() -> None:
    queue = queue_of(Prompt(0, 999, ttft_us=1e6))
    gate = policy(floor=0.0)
    assert chunks(gate.choose(0.0, decoding(1e6, pause_us=11_000.0), queue, Pool())) == [(0, 999)]
    assert chunks(gate.choose(0.0, decoding(1e6, pause_us=10_900.0), queue, Pool())) == []


def test_what_the_engine_has_is_done_first_come_first_served_whatever_the_decodes_say() -> None:
    begun = [Prompt(0, 700, ttft_us=9e5, computed=100, arrival_us=-1.0), Prompt(1, 700, ttft_us=1e5, computed=100)]
    queue = queue_of(*begun, Prompt(2, 10, ttft_us=1e4))
    assert chunks(policy().choose(0.0, decoding(-1e6), queue, Pool())) == [(0, 700), (1, 299)]


def test_no_more_is_handed_over_than_fills_the_step() -> None:
    queue = queue_of(*(Prompt(number, 600, ttft_us=5e5) for number in range(4)))
    assert chunks(policy().choose(0.0, NO_DECODES, queue, Pool())) == [(0, 600), (1, 400)]


def test_prompts_wait_for_those_before_them() -> None:
    """One that the decodes can afford does not overtake the next in turn, whose own chance would never come."""
    first, second = Prompt(0, 900, ttft_us=300_000.0), Prompt(1, 800, ttft_us=1e6)
    assert chunks(policy(floor=0.0).choose(0.0, decoding(9_500.0), queue_of(second), Pool())) == [(1, 800)]
    assert chunks(policy(floor=0.0).choose(0.0, decoding(9_500.0), queue_of(first, second), Pool())) == []


def test_a_broken_promise_that_no_step_could_keep_holds_nobody_back() -> None:
    lost = Decodes(np.array([-1e6]), np.array([1e9]), np.array([900.0]), 0.0, np.zeros(1))
    queue = queue_of(Prompt(0, 4_500, ttft_us=1e6))
    assert chunks(policy().choose(0.0, lost, queue, Pool())) == [(0, 999)]


def test_a_late_decode_does_not_freeze_prefill() -> None:
    """It makes a token every .7 of its TPOT, as if it had never been late: 10 prompts of 46 ms, 21 ms a token."""
    gate, late = policy(max_tokens=5_000), decoding(-1e9)
    tokens, took_us, handed_over = 0, 0.0, 0
    while handed_over < 10:
        choice = gate.choose(0.0, late, queue_of(Prompt(handed_over, 4_500, ttft_us=1e6)), Pool())
        handed_over += len(choice.chunks)
        step_us = 1_010.0 + 10 * sum(chunk.tokens for chunk in choice.chunks)
        gate.stepped(choice, late, True, step_us, step_us)
        tokens, took_us = tokens + 1, took_us + step_us
    assert took_us <= 21_000 * tokens <= took_us + 30_000


def test_where_the_room_is_full_nobody_overtakes() -> None:
    full = Pool(places=0)
    queue = queue_of(*(Prompt(n, 10, ttft_us=1e9) for n in range(1_000)))
    assert chunks(policy().choose(0.0, NO_DECODES, queue, full)) == []
    assert full.asked == 1


def test_short_steps_are_always_affordable() -> None:
    queue = queue_of(Prompt(0, 1_900, ttft_us=1e6))
    assert chunks(policy(2_000).choose(0.0, decoding(-1e9), queue, Pool())) == [(0, 1_900)]


def test_the_hopeless_are_given_up() -> None:
    choice = policy().choose(0.0, NO_DECODES, queue_of(Prompt(0, 60_000, ttft_us=500_000.0)), Pool())
    assert [given_up.reason for given_up in choice.given_up] == ["hopeless"]
    assert not choice.chunks
