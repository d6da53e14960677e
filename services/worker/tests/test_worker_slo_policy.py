"""The step policy's rules, each by an example that can be worked by hand; and what holds for any queue."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompt_queue import Pool, Prompt, queue_of

from hyperflexis_common.step_time import StepShape, StepTimeModel
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.slo_rules import SloRules
from hyperflexis_worker.steps.step_policy import NO_DECODES, Decodes, Offer, StepChoice
from hyperflexis_worker.steps.worth import Worth, WorthRules

MODEL = StepTimeModel(1_000.0, 10.0, 10.0, 0.0, 0.0, host_us=0.0)
"""1 ms and 10 us a token."""
EXACT = SloRules(slack_share=1.0, margin_us=0.0)


def policy(rules: SloRules = EXACT, worth: WorthRules | None = None, max_tokens: int = 100_000) -> SloPolicy:
    return SloPolicy(MODEL, max_tokens, 1_000, worth=Worth(worth), rules=rules)


def decoding(*slacks_us: float, tpot_us: float = 30_000.0, pause_us: float = 1e9) -> Decodes:
    """With so much slack each, at time 0."""
    count = len(slacks_us)
    return Decodes(np.array(slacks_us), np.full(count, pause_us), np.full(count, tpot_us), 0.0, np.zeros(count))


def numbers(choice: StepChoice) -> list[int]:
    return [chunk.request.number for chunk in choice.chunks]


def test_the_least_slack_sets_the_step() -> None:
    queue = queue_of(Prompt(0, 10_000, ttft_us=1e6))
    choice = policy().choose(0.0, decoding(25_000.0, 90_000.0), queue, Pool())
    assert choice.budget_us == 25_000.0
    # 1 ms, two decodes of 10 us, and what fits of the prompt.
    assert [chunk.tokens for chunk in choice.chunks] == [(25_000 - 1_000 - 20) // 10]


def test_a_step_is_no_longer_than_the_tightest_tpot_though_there_be_slack() -> None:
    queue = queue_of(Prompt(0, 5_000, ttft_us=1e6))
    assert policy().choose(0.0, decoding(500_000.0), queue, Pool()).budget_us == 30_000.0


def test_a_prompt_that_would_be_late_may_have_longer_steps() -> None:
    # 90 ms of prefill due in 92: three steps of 30 ms have 3 x 28.99 ms for it.
    hurried = queue_of(Prompt(0, 9_000, ttft_us=92_000))
    assert policy().choose(0.0, decoding(500_000.0), hurried, Pool()).budget_us == 150_000.0
    calm = queue_of(Prompt(0, 9_000, ttft_us=100_000))
    assert policy().choose(0.0, decoding(500_000.0), calm, Pool()).budget_us == 30_000.0


def test_a_step_is_short_while_nobody_needs_a_long_one() -> None:
    loose = decoding(500_000.0, tpot_us=50_000.0)
    # 100 ms of prefill; of steps of 35 ms, 33.99 are prefill: twice that are 103 of 206 ms.
    assert policy().choose(0.0, loose, queue_of(Prompt(0, 10_000, ttft_us=206_000)), Pool()).budget_us == 35_000.0
    assert policy().choose(0.0, loose, queue_of(Prompt(0, 10_000, ttft_us=205_000)), Pool()).budget_us == 50_000.0
    assert policy().choose(0.0, loose, queue_of(), Pool()).budget_us == 35_000.0


def test_no_step_is_shorter_than_the_floor_for_want_of_work() -> None:
    assert policy().choose(0.0, decoding(9e6, tpot_us=150_000.0), queue_of(), Pool()).budget_us == 105_000.0


def test_all_who_wait_must_have_ample_time_and_not_the_first_alone() -> None:
    queue = queue_of(Prompt(0, 2_000, ttft_us=200_000), Prompt(1, 10_000, ttft_us=220_000))
    assert policy().choose(0.0, decoding(500_000.0, tpot_us=50_000.0), queue, Pool()).budget_us == 50_000.0


def test_a_step_that_is_mostly_decodes_is_not_shortened_to_nothing_but_them() -> None:
    # 2,900 decodes take 30 ms.
    loose = decoding(*[500_000.0] * 2_900, tpot_us=75_000.0)
    assert policy().choose(0.0, loose, queue_of(), Pool()).budget_us == 60_000.0


def test_a_late_decode_does_not_freeze_prefill() -> None:
    queue = queue_of(Prompt(0, 5_000, ttft_us=1e6))
    choice = policy().choose(0.0, decoding(-50_000.0), queue, Pool())
    assert choice.budget_us == pytest.approx(21_000.0)
    assert choice.chunks


def test_a_broken_promise_that_no_step_could_keep_holds_nobody_back() -> None:
    """Steps take 1.01 ms with nothing but the decode in them: .9 a token is lost, 1.1 is not."""
    queue = queue_of(Prompt(0, 50_000, ttft_us=1e6))
    late = decoding(-50_000.0, tpot_us=900.0)
    assert not policy(SloRules(slack_share=1.0, margin_us=0.0, reachable=False)).choose(0.0, late, queue, Pool()).chunks
    choice = policy().choose(0.0, late, queue, Pool())
    assert choice.budget_us == 150_000.0 and numbers(choice) == [0]
    assert not policy().choose(0.0, decoding(-50_000.0, tpot_us=1_100.0), queue, Pool()).chunks
    # Not broken yet: its slack counts. And of its pauses the longest is promised.
    assert policy().choose(0.0, decoding(800.0, tpot_us=900.0), queue, Pool()).budget_us == 800.0
    assert policy().choose(0.0, decoding(-1.0, tpot_us=900.0, pause_us=9_000.0), queue, Pool()).budget_us == 9_000.0


def test_beside_a_lost_decode_the_others_set_the_step() -> None:
    queue = queue_of(Prompt(0, 50_000, ttft_us=1e6))
    both = Decodes(np.array([-1.0, 25_000.0]), np.full(2, 1e9), np.array([900.0, 30_000.0]), 0.0, np.zeros(2))
    assert policy().choose(0.0, both, queue, Pool()).budget_us == 25_000.0


def test_a_step_ends_before_the_first_tokens_that_it_makes_are_due() -> None:
    # 30 ms of prefill due in 50, and a long prompt that would fill the step up to 150 ms: 1 + 30 + 19.
    queue = queue_of(Prompt(0, 3_000, ttft_us=50_000.0), Prompt(1, 20_000, ttft_us=1e6))
    choice = policy().choose(0.0, NO_DECODES, queue, Pool())
    assert [(chunk.request.number, chunk.tokens) for chunk in choice.chunks] == [(0, 3_000), (1, 1_900)]
    unasked = policy(SloRules(slack_share=1.0, margin_us=0.0, first_in_time=False))
    assert [chunk.tokens for chunk in unasked.choose(0.0, NO_DECODES, queue, Pool()).chunks] == [3_000, 11_900]


def test_the_longest_pause_counts_like_a_due_token() -> None:
    queue = queue_of(Prompt(0, 5_000, ttft_us=1e6))
    assert policy().choose(0.0, decoding(500_000.0, pause_us=24_000.0), queue, Pool()).budget_us == 24_000.0


def test_the_hopeless_are_given_up_with_their_numbers() -> None:
    queue = queue_of(Prompt(0, 60_000, ttft_us=500_000.0), Prompt(1, 100, ttft_us=500_000.0))
    choice = policy().choose(0.0, NO_DECODES, queue, Pool())
    [given_up] = choice.given_up
    assert (given_up.request.number, given_up.reason) == (0, "hopeless")
    assert given_up.numbers["predicted_ttft_us"] == pytest.approx(601_000.0)
    assert given_up.numbers["late_us"] == pytest.approx(101_000.0)
    assert numbers(choice) == [1]


def test_one_that_has_made_a_token_is_never_given_up() -> None:
    queue = queue_of(Prompt(0, 60_000, ttft_us=500_000.0, made=3), Prompt(1, 60_000, ttft_us=500_000.0))
    choice = policy().choose(0.0, NO_DECODES, queue, Pool())
    assert [given_up.request.number for given_up in choice.given_up] == [1]


def test_the_largest_is_left_behind_and_told_after_a_tenth_of_its_ttft() -> None:
    def waiting(now_us: float) -> StepChoice:
        # 300 ms, 40 and 40 of prefill, all due at 350 ms: without the first, the others are in time.
        prompts = [Prompt(n, tokens, ttft_us=350_000.0) for n, tokens in enumerate((30_000, 4_000, 4_000))]
        return policy(max_tokens=1_000).choose(now_us, NO_DECODES, queue_of(*prompts), Pool())

    early, later = waiting(0.0), waiting(36_000.0)
    assert (early.given_up, numbers(early)) == ([], [1])
    assert [(g.request.number, g.reason) for g in later.given_up] == [(0, "left_behind")]


def test_weight_chooses_the_victim() -> None:
    def left(weight: float) -> set[int]:
        prompts = [
            Prompt(0, 20_000, ttft_us=350_000.0, weight=weight), *(Prompt(n, 4_000, ttft_us=350_000.0) for n in (1, 2))
        ]  # fmt: skip
        choice = policy().choose(36_000.0, NO_DECODES, queue_of(*prompts), Pool())
        return {given_up.request.number for given_up in choice.given_up}

    assert left(1.0) == {0}
    assert left(20.0) == {1, 2}


def test_the_worthy_are_not_overtaken_by_the_cheap() -> None:
    dear, cheap = Prompt(0, 4_000, ttft_us=500_000.0), Prompt(1, 100, ttft_us=550_000.0)
    assert numbers(policy(max_tokens=100).choose(0.0, NO_DECODES, queue_of(dear, cheap), Pool())) == [1]
    dear = Prompt(0, 4_000, ttft_us=500_000.0, weight=20.0)
    assert numbers(policy(max_tokens=100).choose(0.0, NO_DECODES, queue_of(dear, cheap), Pool())) == [0]


def test_where_the_room_is_full_nobody_overtakes_and_who_has_begun_goes_on() -> None:
    """However many wait: a step is not to wait for its plan."""
    prompts = [Prompt(n, 100, ttft_us=1e9) for n in range(1_000)]
    last = Prompt(1_000, 100, ttft_us=2e9, computed=50)
    full = Pool(places=0, begun_fit=True)
    assert numbers(policy().choose(0.0, NO_DECODES, queue_of(*prompts, last), full)) == [1_000]
    assert full.asked == 1


def test_where_as_many_run_as_may_who_has_begun_goes_on() -> None:
    crowd = decoding(*[1e6] * 1_000)
    room = Pool()
    queue = queue_of(Prompt(0, 100, ttft_us=1e6), Prompt(1, 100, ttft_us=2e6, computed=50))
    assert numbers(policy().choose(0.0, crowd, queue, room)) == [1]
    assert room.asked == 0


def test_those_who_have_begun_count_among_those_who_run() -> None:
    begun = [Prompt(n, 100, ttft_us=2e6, computed=50) for n in range(3)]
    few = SloPolicy(MODEL, 100_000, 4, rules=EXACT)
    new = [Prompt(n, 100, ttft_us=1e6) for n in range(3, 6)]
    assert sorted(numbers(few.choose(0.0, NO_DECODES, queue_of(*begun, *new), Pool()))) == [0, 1, 2, 3]


def test_nobody_new_takes_the_room_of_one_that_lost_its_own_while_it_answered() -> None:
    class Small(Pool):
        """Room for short ones only."""

        def offer(self, request: Prompt) -> Offer | None:
            return super().offer(request) if request.to_compute < 1_000 else None

    lost, short = Prompt(0, 1_000, ttft_us=1e6, made=5), Prompt(1, 100, ttft_us=1.5e6)
    assert numbers(policy().choose(0.0, NO_DECODES, queue_of(lost, short), Small())) == []
    other = Prompt(2, 200, ttft_us=2e6, made=3)
    assert numbers(policy().choose(0.0, NO_DECODES, queue_of(lost, short, other), Small())) == [2]


def test_a_step_too_short_for_a_long_context_is_filled_with_others() -> None:
    """32 tokens after 90,000 take 2.9 ms here, and the decode leaves 2."""
    steep = SloPolicy(StepTimeModel(1_000.0, 0.0, 0.0, 1e-3, 0.0, host_us=0.0), 100_000, 1_000, rules=EXACT)
    long, short = Prompt(0, 5_000, ttft_us=9e6, computed=90_000), Prompt(1, 100, ttft_us=2e7)
    choice = steep.choose(0.0, decoding(3_000.0, tpot_us=4_000.0), queue_of(long, short), Pool())
    assert numbers(choice) == [1]


def test_a_slow_worker_says_so_in_its_share() -> None:
    slow = policy()
    before = slow.prefill_share
    for _ in range(300):
        slow.stepped(StepChoice(), NO_DECODES, False, predicted_us=10_000.0, took_us=20_000.0)
    assert slow.prefill_share == pytest.approx(before / 2, rel=0.01)


PROMPTS = st.lists(
    st.builds(
        Prompt,
        number=st.just(0),
        to_compute=st.integers(1, 40_000),
        ttft_us=st.sampled_from([100_000.0, 500_000.0, 15_000_000.0]),
        arrival_us=st.floats(-400_000.0, 0.0),
        weight=st.sampled_from([0.1, 1.0, 3.0]),
        tenant=st.sampled_from(["", "a"]),
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(
    PROMPTS,
    st.lists(st.floats(-100_000.0, 400_000.0), max_size=12),
    st.sampled_from([30e3, 400e3, 1e6]),
    st.sampled_from([64, 2_048, 100_000]),
)
def test_any_step_keeps_its_limits(
    prompts: list[Prompt], slacks_us: list[float], tpot_us: float, max_tokens: int
) -> None:
    for number, prompt in enumerate(prompts):
        prompt.number = number
    decodes = decoding(*slacks_us, tpot_us=tpot_us) if slacks_us else NO_DECODES
    queue = queue_of(*prompts)
    choice = policy(max_tokens=max_tokens).choose(0.0, decodes, queue, Pool())
    chosen, given_up = numbers(choice), [each.request.number for each in choice.given_up]
    assert len(set(chosen) | set(given_up)) == len(chosen) + len(given_up)
    assert decodes.count + sum(chunk.tokens for chunk in choice.chunks) <= max(max_tokens, decodes.count)
    assert all(1 <= chunk.tokens <= chunk.request.to_compute for chunk in choice.chunks)
    if slacks_us and choice.chunks:
        chunks = tuple((chunk.tokens, chunk.request.computed) for chunk in choice.chunks)
        assert MODEL.predict_us(StepShape(chunks, decodes.count)) <= choice.budget_us + 1e-6
        assert choice.budget_us <= 150_000.0
    if not slacks_us and len(given_up) < len(prompts):
        assert chosen
