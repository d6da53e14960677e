"""The router's rules of attempts: who owns which index, what is output, when a request ends."""

from __future__ import annotations

import pytest
from router_core_rig import (
    OUTPUT,
    SECOND,
    A,
    B,
    C,
    bind,
    committed,
    ended,
    finish,
    gone,
    new_request,
    placed,
    resumed_request,
    step,
    submits,
    to_feed,
)

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.worker.v1 import token_feed_pb2 as feed_pb2
from hyperflexis_common.tokens import pack, unpack
from hyperflexis_router.core.effects import DropScheduler, Ended, Noticed, ToScheduler
from hyperflexis_router.core.router import RouterCore


def test_a_request_from_submit_to_end(core: RouterCore) -> None:
    [submit] = submits(core.submit(new_request(), 1_000))
    assert (submit.resume, submit.age_us, submit.prompt_tokens) == (False, 1_000, 3)
    [(worker, start)] = to_feed(core.scheduler_message(placed(1, A), 2_000), "start")
    assert worker == A
    assert isinstance(start, feed_pb2.Start)
    assert (start.prompt, start.committed, start.age_us) == (pack([1, 2, 3]), b"", 2_000)
    core.feed_message(A, bind(5, 1), 3_000)
    assert committed(core.feed_message(A, step(5, 0, OUTPUT[:1]), 4_000)) == OUTPUT[:1]
    assert committed(core.feed_message(A, step(5, 1, OUTPUT[1:3]), 4_000)) == OUTPUT[1:3]
    effects = core.feed_message(A, finish(5, OUTPUT[:3]), 5_000)
    assert ended(effects) == [Ended("r", sampling_pb2.FINISH_REASON_LENGTH, output_tokens=3, attempts=1)]
    assert len(to_feed(effects, "closed")) == 1
    assert any(isinstance(e, ToScheduler) and e.message.done.request_ids == ["r"] for e in effects)
    assert len(core) == 0


def test_tokens_of_a_superseded_attempt_are_dropped(running: RouterCore) -> None:
    effects = running.scheduler_message(placed(2, B, base=2), 0)
    [(worker, start)] = to_feed(effects, "start")
    assert worker == B and isinstance(start, feed_pb2.Start) and unpack(start.committed) == OUTPUT[:2]
    assert [e.notice.kind for e in effects if isinstance(e, Noticed)] == [4]
    assert committed(running.feed_message(A, step(0, 2, [99]), 0)) == []
    running.feed_message(B, bind(0, 2), 0)
    assert committed(running.feed_message(B, step(0, 2, OUTPUT[2:4]), 0)) == OUTPUT[2:4]


def test_an_older_or_equal_placement_changes_nothing(running: RouterCore) -> None:
    running.scheduler_message(placed(3, B, base=2), 0)
    assert running.scheduler_message(placed(2, A, base=2), 0) == []
    assert running.scheduler_message(placed(3, B, base=2, started=True), 0) == []
    placement = running.placement("r")
    assert placement is not None and placement[1] == B


def test_the_older_attempt_owns_what_lies_below_the_new_base(running: RouterCore) -> None:
    running.scheduler_message(placed(2, B, base=4, started=True), 0)
    running.feed_message(B, bind(0, 2), 0)
    assert committed(running.feed_message(B, step(0, 4, OUTPUT[4:6]), 0)) == []
    assert committed(running.feed_message(B, step(0, 2, [77, 78], OUTPUT), 0)) == []
    assert committed(running.feed_message(A, step(0, 2, OUTPUT[2:6]), 0)) == OUTPUT[2:6]
    assert committed(running.feed_message(A, step(0, 6, [99]), 0)) == []


def test_a_dead_older_attempt_leaves_its_part_to_the_new_one(running: RouterCore) -> None:
    running.scheduler_message(placed(2, B, base=4, started=True), 0)
    [(worker, subscribe)] = to_feed(running.feed_closed(A, 0), "subscribe")
    assert worker == B and isinstance(subscribe, feed_pb2.Subscribe) and subscribe.next_index == 2
    running.feed_message(B, bind(0, 2), 0)
    assert committed(running.feed_message(B, step(0, 2, OUTPUT[2:6]), 0)) == OUTPUT[2:6]


@pytest.mark.parametrize("base", [2, 6])
def test_of_three_attempts_the_first_is_dead(running: RouterCore, base: int) -> None:
    """It still owed tokens to the second one when the third came: the third or the second is asked for them now."""
    running.scheduler_message(placed(2, B, base=4, started=True), 0)
    third = placed(3, C, base=base, started=True)
    third.placed.worker_address = "c:1"
    running.scheduler_message(third, 0)
    [(worker, _)] = to_feed(running.feed_opened(C, 0), "subscribe")
    assert worker == (C if base == 2 else B)
    assert committed(running.feed_message(A, step(0, 2, OUTPUT[2:4]), 0)) == []
    running.cancel("r", 0)
    assert not any(feed.users for feed in running._feeds.values())


def test_a_later_index_waits_and_an_earlier_one_is_dropped(running: RouterCore) -> None:
    effects = running.feed_message(A, step(0, 3, OUTPUT[3:5]), 0)
    [(_, subscribe)] = to_feed(effects, "subscribe")
    assert isinstance(subscribe, feed_pb2.Subscribe) and subscribe.next_index == 2
    assert to_feed(running.feed_message(A, step(0, 5, OUTPUT[5:6]), 0), "subscribe") == []
    assert committed(running.feed_message(A, step(0, 1, OUTPUT[1:2]), 0)) == []
    assert committed(running.feed_message(A, step(0, 1, OUTPUT[1:3]), 0)) == OUTPUT[2:]


def test_a_wrong_crc_is_never_output(running: RouterCore) -> None:
    effects = running.feed_message(A, step(0, 2, [12], prefix=[0, 0]), 0)
    assert committed(effects) == []
    [submit] = submits(effects)
    assert (
        submit.resume and submit.last_attempt_failed and submit.last_attempt.seq == 1 and submit.committed_tokens == 2
    )
    assert committed(running.feed_message(A, step(0, 2, OUTPUT[2:3]), 0)) == []


def test_more_tokens_than_asked_for_are_never_output(core: RouterCore) -> None:
    core.submit(new_request(max_tokens=1), 0)
    core.scheduler_message(placed(1, A), 0)
    core.feed_message(A, bind(0, 1), 0)
    effects = core.feed_message(A, step(0, 0, OUTPUT[:2]), 0)
    assert committed(effects) == [] and submits(effects)[0].last_attempt_failed


def test_gone_fails_the_current_attempt_only(running: RouterCore) -> None:
    running.scheduler_message(placed(2, B, base=2), 0)
    assert running.feed_message(A, gone(1), 0) == []
    assert submits(running.feed_message(B, gone(2), 0))[0].last_attempt_failed


def test_the_end_waits_for_its_tokens(running: RouterCore) -> None:
    effects = running.feed_message(A, finish(0, OUTPUT[:4]), 0)
    assert ended(effects) == [] and len(to_feed(effects, "subscribe")) == 1
    assert len(ended(running.feed_message(A, step(0, 2, OUTPUT[2:4]), 0))) == 1


def test_an_end_with_another_crc_fails_the_attempt(running: RouterCore) -> None:
    effects = running.feed_message(A, finish(0, [10, 99]), 0)
    assert ended(effects) == [] and submits(effects)[0].last_attempt_failed


def test_an_engine_error_ends_the_request(running: RouterCore) -> None:
    [end] = ended(running.feed_message(A, finish(0, OUTPUT[:2], sampling_pb2.FINISH_REASON_ERROR), 0))
    assert end.reason == sampling_pb2.FINISH_REASON_ERROR and "engine" in end.message


def test_a_released_request_is_left_alone(running: RouterCore) -> None:
    assert running.release("r", 0) == []
    assert running.feed_message(A, step(0, 2, OUTPUT[2:3]), 0) == []
    assert running.tick(10 * SECOND) == [] or all(isinstance(e, DropScheduler) for e in running.tick(10 * SECOND))


def test_a_resumed_request_that_has_everything_ends_at_once(core: RouterCore) -> None:
    [end, *_] = core.submit(resumed_request(OUTPUT, max_tokens=len(OUTPUT)), 0)
    assert isinstance(end, Ended) and end.reason == sampling_pb2.FINISH_REASON_LENGTH


def test_the_client_may_have_more_than_its_router(running: RouterCore) -> None:
    """It got indices 2 and 3 through another router."""
    effects = running.extend("r", pack(OUTPUT[2:4]), 0)
    assert committed(effects) == OUTPUT[2:4]
    [submit] = submits(effects)
    assert submit.resume and submit.committed_tokens == 4 and not submit.last_attempt_failed
    [(worker, subscribe)] = to_feed(effects, "subscribe")
    assert worker == A and isinstance(subscribe, feed_pb2.Subscribe) and subscribe.next_index == 4
    assert committed(running.feed_message(A, step(0, 2, OUTPUT[2:5]), 0)) == OUTPUT[4:5]


def test_an_attempt_that_made_other_tokens_than_the_client_has_is_given_up(running: RouterCore) -> None:
    running.extend("r", pack([98, 99]), 0)
    effects = running.feed_message(A, step(0, 2, OUTPUT[2:5]), 0)
    assert committed(effects) == [] and [submit.last_attempt_failed for submit in submits(effects)] == [True]


def test_a_client_that_has_everything_needs_no_more(core: RouterCore) -> None:
    core.submit(new_request(max_tokens=3), 0)
    effects = core.extend("r", pack(OUTPUT[:3]), 0)
    assert [end.reason for end in ended(effects)] == [sampling_pb2.FINISH_REASON_LENGTH] and len(core) == 0
