"""The router's rules of feeds: silence, gaps, breaks, Start and Subscribe."""

from __future__ import annotations

import math

import pytest
from router_core_rig import (
    OUTPUT,
    SECOND,
    A,
    B,
    bind,
    committed,
    down,
    ended,
    finish,
    lost,
    new_request,
    placed,
    resumed_request,
    step,
    submits,
    to_feed,
)

from hyperflexis.scheduler.v1 import router_session_pb2 as session_pb2
from hyperflexis.worker.v1 import token_feed_pb2 as feed_pb2
from hyperflexis_common.tokens import count, extend_crc, pack, pack_floats
from hyperflexis_router.core.effects import CloseFeed, Committed, OpenFeed
from hyperflexis_router.core.router import RouterCore
from hyperflexis_router.core.timing import RouterTiming


def test_silence_on_an_attempt_subscribes_again(running: RouterCore) -> None:
    assert running.tick(2 * SECOND - 1) == []
    [(_, subscribe)] = to_feed(running.tick(2 * SECOND), "subscribe")
    assert isinstance(subscribe, feed_pb2.Subscribe) and subscribe.next_index == 2


def test_a_gap_that_nobody_fills_fails_the_attempt(running: RouterCore) -> None:
    running.feed_message(A, step(0, 3, OUTPUT[3:4]), 0)
    running.tick(2 * SECOND)
    running.feed_message(A, step(0, 4, OUTPUT[4:5]), 3 * SECOND)
    assert submits(running.tick(4 * SECOND)) == []
    assert submits(running.tick(5 * SECOND))[0].last_attempt_failed


def test_a_feed_that_stays_down_fails_its_attempts(running: RouterCore) -> None:
    running.feed_closed(A, SECOND)
    assert submits(running.tick(6 * SECOND - 1)) == []
    assert submits(running.tick(6 * SECOND))[0].last_attempt_failed


def test_a_feed_that_comes_back_is_subscribed(running: RouterCore) -> None:
    running.feed_closed(A, SECOND)
    [(_, subscribe)] = to_feed(running.feed_opened(A, 2 * SECOND), "subscribe")
    assert isinstance(subscribe, feed_pb2.Subscribe) and subscribe.next_index == 2
    # Slots do not survive the stream.
    assert committed(running.feed_message(A, step(0, 2, OUTPUT[2:3]), 2 * SECOND)) == []
    running.feed_message(A, bind(0, 1), 2 * SECOND)
    assert committed(running.feed_message(A, step(0, 2, OUTPUT[2:3]), 2 * SECOND)) == OUTPUT[2:3]


def test_an_unanswered_start_is_sent_again_when_the_feed_returns(core: RouterCore) -> None:
    core.submit(new_request(), 0)
    core.feed_closed(A, 0)
    assert core.scheduler_message(placed(1, A), 0) == []
    assert len(to_feed(core.feed_opened(A, 1), "start")) == 1


def test_a_started_placement_is_subscribed_only(core: RouterCore) -> None:
    core.submit(resumed_request(OUTPUT[:2]), 0)
    effects = core.scheduler_message(placed(4, A, base=0, started=True), 0)
    assert to_feed(effects, "start") == [] and len(to_feed(effects, "subscribe")) == 1
    core.feed_message(A, bind(0, 4), 0)
    assert committed(core.feed_message(A, step(0, 2, OUTPUT[2:3]), 0)) == OUTPUT[2:3]


def test_with_confirm_close_the_worker_keeps_tokens_until_the_record_is_written() -> None:
    core = RouterCore("router", 1, RouterTiming(confirm_close=True))
    core.scheduler_opened(0)
    core.submit(new_request(), 0)
    message = placed(1, A)
    message.placed.worker_address = "a:1"
    assert core.scheduler_message(message, 0) == [OpenFeed(A, "a:1")]
    assert len(to_feed(core.feed_opened(A, 0), "start")) == 1
    core.feed_message(A, bind(0, 1), 0)
    effects = core.feed_message(A, finish(0, []), 0)
    assert len(effects) == len(ended(effects)) == 1
    assert len(to_feed(core.closed("r", 0), "closed")) == 1
    assert core.closed("r", 0) == []


def test_feeds_follow_the_worker_list(running: RouterCore) -> None:
    moved = session_pb2.WorkerEntry(identity=B.proto(), address="b:2", model="m")
    assert running.scheduler_message(down(workers=session_pb2.WorkerList(workers=[moved])), 0) == [
        CloseFeed(B),
        OpenFeed(B, "b:2"),
    ]
    running.scheduler_message(down(workers=session_pb2.WorkerList(full=True)), 0)
    # A is in use and stays; B is not, and goes after a while: a new leader may list it in a moment.
    for at in (1, 3, 5, 7, 9, 10):
        running.scheduler_message(down(ping=session_pb2.Ping(id=at)), at * SECOND)
        running.feed_message(A, step(0, 2 + (at > 1), OUTPUT[2:3]), at * SECOND)
        effects = running.tick(at * SECOND)
        assert (CloseFeed(B) in effects) == (at == 10)
        assert CloseFeed(A) not in effects


def test_a_malformed_step_raises_and_changes_nothing(running: RouterCore) -> None:
    bad = step(0, 2, OUTPUT[2:4])
    bad.step.counts = pack([9])
    with pytest.raises(ValueError, match="columns"):
        running.feed_message(A, bad, 0)
    assert committed(running.feed_message(A, step(0, 2, OUTPUT[2:3]), 0)) == OUTPUT[2:3]


def test_a_bind_that_comes_after_its_attempt_was_given_up_binds_nothing(core: RouterCore) -> None:
    core.submit(new_request(), 0)
    core.scheduler_message(placed(1, A), 0)
    core.scheduler_message(lost(1), 0)
    core.feed_message(A, bind(3, 1), 0)
    core.scheduler_message(placed(2, B), 0)
    assert committed(core.feed_message(A, step(3, 0, OUTPUT[:1]), 0)) == []
    feed = core._feeds[A]
    assert feed.bound(3) is None and not feed.users


def test_logprobs_stay_with_their_tokens(core: RouterCore) -> None:
    """However the tokens come: too early, partly known already, or from a worker that did not make them."""

    def told(start: int, values: list[float]) -> feed_pb2.TokenFeedResponse:
        message = step(0, start, OUTPUT[start : start + len(values)])
        message.step.logprobs.add(
            entry=0,
            chosen=pack_floats(values),
            width=2,
            top_ids=pack([0, 1] * len(values)),
            top=pack_floats([-0.5, math.nan] * len(values)),
        )
        return message

    core.submit(new_request(), 0)
    core.scheduler_message(placed(1, A), 0)
    core.feed_message(A, bind(0, 1), 0)
    assert committed(core.feed_message(A, told(2, [-2.0, -3.0]), 0)) == []
    effects = [e for m in (told(0, [0.0, -1.0]), told(3, [-3.0, -4.0])) for e in core.feed_message(A, m, 0)]
    chosen = [one.logprob for e in effects if isinstance(e, Committed) for one in e.logprobs]
    assert committed(effects) == OUTPUT[:5] and chosen == [0.0, -1.0, -2.0, -3.0, -4.0]
    first = next(one for e in effects if isinstance(e, Committed) for one in e.logprobs)
    assert dict(first.top) == {0: -0.5}, "NaN pads what the worker did not tell"
    bad = told(5, [-5.0])
    bad.step.logprobs[0].chosen = pack_floats([1.0, 2.0])
    with pytest.raises(ValueError, match="log-probabilities"):
        core.feed_message(A, bad, 0)


def test_a_step_of_64_entries_commits_64_tokens(core: RouterCore) -> None:
    names = [f"r{index}" for index in range(64)]
    for index, name in enumerate(names):
        core.submit(new_request(name, max_tokens=10_000), 0)
        core.scheduler_message(placed(index + 1, A, request_id=name), 0)
        core.feed_message(A, bind(index, index + 1, name), 0)
    crc, messages = 0, []
    for index in range(50):
        crc = extend_crc(crc, pack([7]))
        one = feed_pb2.StepTokens(
            slots=pack(range(64)),
            start_index=pack([index] * 64),
            counts=pack([1] * 64),
            crc=pack([crc] * 64),
            tokens=pack([7] * 64),
        )
        messages.append(feed_pb2.TokenFeedResponse(step=one))
    for message in messages:
        effects = core.feed_message(A, message, 0)
        assert sum(count(e.packed) for e in effects if isinstance(e, Committed)) == 64
