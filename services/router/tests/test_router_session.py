"""The router's rules of its scheduler session: submits, fences, refusals, what is told later."""

from __future__ import annotations

import dataclasses

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

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis.router.v1.inference_service_pb2 import Notice
from hyperflexis.scheduler.v1 import router_session_pb2 as session_pb2
from hyperflexis_router.core.effects import DropScheduler, Noticed, ToScheduler
from hyperflexis_router.core.router import RouterCore

CHAT = new_request().slo
GAVE_UP = slo_pb2.Decision(numbers={"predicted_ttft_us": 2_000_000})


def test_an_unanswered_submit_is_repeated_each_second_as_resume(core: RouterCore) -> None:
    core.submit(new_request(), 0)
    assert submits(core.tick(SECOND - 1)) == []
    [again] = submits(core.tick(SECOND))
    assert again.resume
    core.scheduler_message(down(queued=session_pb2.Queued(request_id="r")), SECOND)
    assert submits(core.tick(5 * SECOND)) == []


def test_lost_is_heeded_for_the_current_attempt_only(running: RouterCore) -> None:
    running.scheduler_message(placed(2, B, base=2), 0)
    assert running.scheduler_message(lost(1), 0) == []
    [submit] = submits(running.scheduler_message(lost(2), 0))
    assert submit.resume and not submit.last_attempt_failed and submit.committed_tokens == 2
    # The scheduler finds the dead attempt alive after all: it must grant another.
    [again] = submits(running.scheduler_message(placed(2, B, base=2, started=True), 0))
    assert again.last_attempt_failed


def test_a_new_session_hears_of_everything_and_the_attempt_goes_on(running: RouterCore) -> None:
    running.scheduler_closed(0)
    [submit] = submits(running.scheduler_opened(SECOND))
    assert submit.resume and submit.committed_tokens == 2 and submit.last_attempt.seq == 1
    assert committed(running.feed_message(A, step(0, 2, OUTPUT[2:3]), SECOND)) == OUTPUT[2:3]


def test_a_request_without_a_session_waits_for_one(core: RouterCore) -> None:
    core.scheduler_closed(0)
    assert core.submit(new_request(), 0) == []
    [submit] = submits(core.scheduler_opened(SECOND))
    assert not submit.resume


def test_no_scheduler_for_long_refuses_what_has_no_place(running: RouterCore) -> None:
    running.submit(new_request("waiting"), 0)
    running.scheduler_closed(0)
    running.feed_message(A, step(0, 2, OUTPUT[2:3]), 30 * SECOND)
    [end] = ended(running.tick(30 * SECOND))
    assert (end.request_id, end.reason) == ("waiting", sampling_pb2.FINISH_REASON_REFUSED)
    assert "30 s" in end.message


def test_refusals_end_once_and_say_why(core: RouterCore) -> None:
    core.submit(new_request(), 0)
    refused = session_pb2.Refused(
        request_id="r", reason=session_pb2.REFUSAL_REASON_SLO, message="no", retry_after_us=5, predicted_ttft_us=9
    )
    [end] = ended(core.scheduler_message(down(refused=refused), 0))
    assert (end.reason, end.message, end.retry_after_us, end.predicted_ttft_us) == (
        sampling_pb2.FINISH_REASON_REFUSED,
        "no",
        5,
        9,
    )
    assert core.scheduler_message(down(refused=refused), 0) == []


def test_a_downgrade_says_what_could_not_be_kept_and_what_holds_now(core: RouterCore) -> None:
    core.submit(new_request(), 0)
    patient = slo_pb2.Slo(tier="patient", ttft_us=9_000_000)
    told = session_pb2.Downgraded(request_id="r", slo=patient, decision=GAVE_UP)
    [noticed] = core.scheduler_message(down(downgraded=told), 0)
    assert isinstance(noticed, Noticed)
    assert noticed.notice == Notice(
        kind=Notice.KIND_DOWNGRADED,
        message="served as tier patient: the promise of chat cannot be kept: its first token was predicted after "
        "2,000 ms, promised are 500",
        slo=patient,
        predicted_ttft_us=2_000_000,
    )


def test_best_effort_says_what_could_not_be_kept(core: RouterCore) -> None:
    core.submit(new_request(), 0)
    told = session_pb2.BestEffort(request_id="r", slo=CHAT, decision=GAVE_UP)
    [noticed] = core.scheduler_message(down(best_effort=told), 0)
    assert isinstance(noticed, Noticed)
    assert noticed.notice == Notice(
        kind=Notice.KIND_BEST_EFFORT,
        message="served after all that still have a promise: the promise of chat cannot be kept: its first token was "
        "predicted after 2,000 ms, promised are 500",
        predicted_ttft_us=2_000_000,
    )


def test_too_many_attempts_are_an_error(core: RouterCore) -> None:
    core.submit(new_request(), 0)
    refused = session_pb2.Refused(request_id="r", reason=session_pb2.REFUSAL_REASON_ATTEMPTS_EXHAUSTED)
    [end] = ended(core.scheduler_message(down(refused=refused), 0))
    assert end.reason == sampling_pb2.FINISH_REASON_ERROR


def test_a_cancellation_through_another_router_is_no_refusal(core: RouterCore) -> None:
    core.submit(new_request(), 0)
    refused = session_pb2.Refused(request_id="r", reason=session_pb2.REFUSAL_REASON_CANCELLED, message="cancelled")
    [end] = ended(core.scheduler_message(down(refused=refused), 0))
    assert end.reason == sampling_pb2.FINISH_REASON_CANCELLED


def test_cancel_reaches_worker_and_scheduler(running: RouterCore) -> None:
    effects = running.cancel("r", 0)
    assert [end.reason for end in ended(effects)] == [sampling_pb2.FINISH_REASON_CANCELLED]
    assert len(to_feed(effects, "closed")) == 1
    assert any(isinstance(e, ToScheduler) and e.message.cancel.request_id == "r" for e in effects)
    assert running.cancel("r", 0) == []
    assert running.feed_message(A, step(0, 2, OUTPUT[2:3]), 0) == []


def test_ends_name_the_owner_that_they_are_the_end_for(core: RouterCore) -> None:
    core.submit(dataclasses.replace(new_request("q"), owner_gen=9), 0)
    [cancel] = [e.message.cancel for e in core.cancel("q", 0) if isinstance(e, ToScheduler)]
    assert (cancel.request_id, cancel.owner_gen) == ("q", 9)
    done = [e for e in core.submit(resumed_request(OUTPUT), 0) if isinstance(e, ToScheduler)]
    assert len(done) == 1 and done[0].message.submit.owner_gen == 7
    core.scheduler_message(placed(1, A, started=True), 0)
    core.feed_message(A, bind(5, 1), 0)
    effects = core.feed_message(A, finish(5, OUTPUT), 0)
    [closed] = [e.message.done for e in effects if isinstance(e, ToScheduler)]
    assert (closed.request_ids, closed.owner_gens) == (["r"], [7])


def test_what_another_router_submitted_is_cancelled_whoever_owns_it(core: RouterCore) -> None:
    [told] = core.cancel_elsewhere("q", 0)
    assert isinstance(told, ToScheduler) and told.message.cancel.request_id == "q"
    assert told.message.cancel.owner_gen == 0


def test_ends_while_cut_off_are_told_later(running: RouterCore) -> None:
    running.scheduler_closed(0)
    running.feed_closed(A, 0)
    running.cancel("r", 0)
    assert len(to_feed(running.feed_opened(A, 1), "closed")) == 1
    [told] = running.scheduler_opened(1)
    assert isinstance(told, ToScheduler) and told.message.cancel.request_id == "r"


def test_a_lower_epoch_is_refused(core: RouterCore) -> None:
    core.submit(new_request(), 0)
    core.scheduler_message(down(epoch=5, ping=session_pb2.Ping(id=1)), 0)
    [drop] = core.scheduler_message(placed(1, A, epoch=4), 0)
    assert isinstance(drop, DropScheduler)
    assert core.placement("r") is None
    assert core.highest_fence.epoch == 5


def test_pings_are_answered_and_silence_drops_the_session(core: RouterCore) -> None:
    [pong] = core.scheduler_message(down(epoch=3, ping=session_pb2.Ping(id=9)), SECOND)
    assert isinstance(pong, ToScheduler) and (pong.message.pong.id, pong.message.pong.highest_fence.epoch) == (9, 3)
    assert core.tick(4 * SECOND - 1) == []
    assert isinstance(core.tick(4 * SECOND)[0], DropScheduler)
