"""QoServe's rules, each by an example that can be worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_sim.qoserve_policy import QoServePolicy
from hyperflexis_sim.request import SimRequest
from hyperflexis_worker.steps.prefill_queue import PrefillQueue
from hyperflexis_worker.steps.step_policy import NO_DECODES, Decodes, Offer, StepChoice

MODEL = StepTimeModel(1_000.0, 10.0, 10.0, 0.0, 0.0, host_us=0.0)
"""1 ms and 10 us a token: a step of 512 takes 6.12 ms."""


class Pool:
    def __init__(self, free_tokens: float = 1e6, closed: tuple[int, ...] = ()) -> None:
        self.free_tokens = free_tokens
        self.closed = closed

    def offer(self, request):
        return None if request.number in self.closed else Offer(request.computed, request.to_compute)

    def take(self, request):
        pass


def prompt(number: int, tokens: int, ttft_us: float = 100e6, computed: int = 0) -> SimRequest:
    request = SimRequest(number, 0.0, "chat", "", tokens, 100, ttft_us, 50e3, 250e3, 1.0, 1_000)
    request.computed, request.to_compute = computed, tokens - computed
    return request


def queue_of(*requests: SimRequest) -> PrefillQueue:
    queue = PrefillQueue()
    for request in requests:
        queue.add(request)
    return queue


def decodes_of(due_us: list[float], token_due_us: list[float] | None = None, tpot_us: float = 50e3) -> Decodes:
    count = len(due_us)
    token_due = None if token_due_us is None else np.array(token_due_us)
    return Decodes(np.array(due_us), np.full(count, 1e9), np.full(count, tpot_us), 0.0, np.zeros(count), token_due)


def chosen(choice: StepChoice) -> list[tuple[int, int]]:
    return [(chunk.request.number, chunk.tokens) for chunk in choice.chunks]


def prefilled(choice: StepChoice) -> int:
    return sum(chunk.tokens for chunk in choice.chunks)


def test_slack_counts_from_the_token_made_or_literally_from_the_later_of_it_and_ttft():
    # TTFT 500 ms, first token after 100 ms, three made: the next is due at 250 ms by TPOT, at 650 ms + 50 ms literally.
    early = decodes_of([100e3 + 3 * 50e3], [500e3 + 3 * 50e3])
    assert QoServePolicy(MODEL, 256, "first_token").slack_us(200e3, early) == 50e3
    assert QoServePolicy(MODEL, 256, "literal").slack_us(200e3, early) == 500e3
    # First token after 600 ms, late: both count from it; the literal one still allows one more.
    late = decodes_of([600e3 + 3 * 50e3], [500e3 + 3 * 50e3])
    assert QoServePolicy(MODEL, 256, "first_token").slack_us(700e3, late) == 50e3
    assert QoServePolicy(MODEL, 256, "literal").slack_us(700e3, late) == 100e3


def test_the_literal_anchor_needs_its_column():
    with pytest.raises(ValueError, match="token_due_us"):
        QoServePolicy(MODEL, 256, "literal").slack_us(0.0, decodes_of([1.0]))


@pytest.mark.parametrize(
    ("slack_us", "tokens"),
    [
        (1.2 * 6_120 - 1, 256 - 1),  # a step of 512 takes 1.2 * 6.12 ms, one decode included
        (1.2 * 6_120 + 1, 512 - 1),
        (1.2 * 21_480 + 1, 2_048 - 1),
        (1.2 * 26_520 + 1, 2_552 - 1),
        (1e9, 2_552 - 1),
        (0.0, 128 - 1),  # late already: the smallest all the same
        (-1e6, 128 - 1),
    ],
)
def test_the_largest_step_tried_within_the_slack(slack_us, tokens):
    choice = QoServePolicy(MODEL, 256).choose(0.0, decodes_of([slack_us]), queue_of(prompt(0, 9_000)), Pool())
    assert prefilled(choice) == tokens


def test_with_no_decodes_the_largest_step():
    assert prefilled(QoServePolicy(MODEL, 256).choose(0.0, NO_DECODES, queue_of(prompt(0, 9_000)), Pool())) == 2_552


def test_many_late_decodes_leave_no_room_for_a_chunk():
    choice = QoServePolicy(MODEL, 256).choose(0.0, decodes_of([0.0] * 130), queue_of(prompt(0, 9_000)), Pool())
    assert chosen(choice) == []


def test_at_most_512_where_little_kv_is_left():
    for free_tokens, tokens in ((31_999.0, 511), (32_000.0, 2_551)):
        pool = Pool(free_tokens)
        choice = QoServePolicy(MODEL, 256).choose(0.0, decodes_of([1e9]), queue_of(prompt(0, 9_000)), pool)
        assert prefilled(choice) == tokens


def test_a_token_is_worth_eight_milliseconds_of_deadline():
    # 1,000 tokens more are 8 s: due 7 s earlier is not enough, 9 s earlier is.
    for longer_due_us, first in ((93e6, 0), (91e6, 1)):
        queue = queue_of(prompt(0, 100, 100e6), prompt(1, 1_100, longer_due_us))
        assert chosen(QoServePolicy(MODEL, 256).choose(0.0, NO_DECODES, queue, Pool()))[0][0] == first


def test_who_cannot_be_in_time_goes_behind_all_others_for_good():
    policy = QoServePolicy(MODEL, 256)
    assert policy.throughput == pytest.approx(512 / 6_120)
    hopeless, fine = prompt(0, 1_000, ttft_us=11_000.0), prompt(1, 2_000)  # 1,000 tokens take 11.95 ms
    choice = policy.choose(0.0, NO_DECODES, queue_of(hopeless, fine), Pool())
    assert chosen(choice) == [(1, 2_000), (0, 552)]
    assert choice.given_up == []
    policy.throughput = 1.0  # it could be in time now, but stays behind
    assert chosen(policy.choose(0.0, NO_DECODES, queue_of(hopeless, fine), Pool()))[0][0] == 1


def test_who_has_begun_is_not_relegated():
    queue = queue_of(prompt(0, 1_100, ttft_us=1.0, computed=100), prompt(1, 2_000))
    assert chosen(QoServePolicy(MODEL, 256).choose(0.0, NO_DECODES, queue, Pool()))[0] == (0, 1_000)


def test_forgets_whom_it_relegated_when_they_are_gone():
    policy = QoServePolicy(MODEL, 256)
    for number in range(200):
        policy.choose(1e6, NO_DECODES, queue_of(prompt(number, 1_000, ttft_us=1.0)), Pool())
    assert len(policy._relegated) <= 67


def test_throughput_is_a_slow_mean_of_what_steps_prefilled():
    policy = QoServePolicy(MODEL, 256)
    policy.throughput = 0.1
    choice = policy.choose(0.0, NO_DECODES, queue_of(prompt(0, 1_000)), Pool())
    policy.stepped(choice, NO_DECODES, False, 5_000.0, 5_000.0)
    assert policy.throughput == pytest.approx(0.1 + 0.005 * (0.2 - 0.1))
    policy.stepped(StepChoice(), NO_DECODES, False, 5_000.0, 5_000.0)
    assert policy.throughput == pytest.approx(0.1005)


def test_where_the_next_finds_no_room_only_those_begun_go_on():
    queue = queue_of(prompt(0, 100), prompt(1, 200), prompt(2, 1_000, computed=100))
    choice = QoServePolicy(MODEL, 256).choose(0.0, NO_DECODES, queue, Pool(closed=(0,)))
    assert chosen(choice) == [(2, 900)]


def test_an_unknown_anchor_is_an_error():
    with pytest.raises(ValueError, match="first_token, literal"):
        QoServePolicy(MODEL, 256, "ttft")
