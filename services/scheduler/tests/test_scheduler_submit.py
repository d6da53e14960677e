"""The Submit table of docs/protocol.md, row by row."""

from __future__ import annotations

import pytest

from hyperflexis.common.v1 import slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis_common.attempt import Attempt
from hyperflexis_scheduler.core.effects import ToRouter, ToWorker
from hyperflexis_scheduler.core.rules import Rules


def test_a_new_request_gets_run_then_placed_of_the_same_attempt(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("q", age_us=5_000, committed_tokens=0)
    run, placed = worker.last("run"), router.last("placed")
    assert run.attempt == placed.attempt == Attempt(7, 1).proto()
    assert run.age_us == 5_000 and run.router_id == "r1" and run.prompt_tokens == 100
    assert placed.worker == worker.key.proto() and placed.worker_address == "w1:1" and not placed.started
    assert placed.decision.kind == "place" and placed.decision.worker_id == "w1"
    kinds = [type(effect) for effect in stage.trail[-2:]]
    assert kinds == [ToWorker, ToRouter]


def test_every_message_down_carries_the_epoch_and_commands_count_from_one(stage):
    worker, router = stage.worker(), stage.router()
    for number in range(3):
        router.submit(f"q{number}")
    assert {message.epoch for message in worker.got + router.got} == {7}
    assert [message.seq for message in worker.got if message.seq] == [1, 2, 3]
    assert [message.seq for message in worker.got if message.WhichOneof("message") == "registered"] == [0]


def test_a_repeated_submit_of_a_living_attempt_gets_the_same_placed_and_no_second_run(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("q")
    router.submit("q", resume=True)
    first, again = router.all("placed")
    assert first.attempt == again.attempt and first.base_index == again.base_index
    assert len(worker.all("run")) == 1


def test_placed_says_started_once_the_worker_has_begun(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("q")
    worker.update("started", worker.last("run"))
    router.submit("q", resume=True)
    assert router.last("placed").started


def test_a_failed_current_attempt_is_cancelled_before_the_next_is_granted(stage):
    first, second, router = stage.worker("w1"), stage.worker("w2"), stage.router()
    router.submit("q")
    was = router.last("placed")
    old, new = (first, second) if was.worker.worker_id == "w1" else (second, first)
    stage.trail.clear()
    router.submit("q", resume=True, committed_tokens=9, last_attempt=was.attempt, last_attempt_failed=True)
    assert old.last("cancel").attempt == was.attempt
    assert new.last("run").base_index == 9 and router.last("placed").base_index == 9
    order = [effect.message.WhichOneof("message") for effect in stage.trail]
    assert order == ["cancel", "run", "placed"]
    assert Attempt.of(router.last("placed").attempt) > Attempt.of(was.attempt)


def test_a_failed_attempt_older_than_the_current_one_is_answered_with_the_current_one(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("q")
    stale = router.last("placed").attempt
    router.submit("q", resume=True, last_attempt=stale, last_attempt_failed=True)
    current = router.last("placed").attempt
    router.submit("q", resume=True, last_attempt=stale, last_attempt_failed=True)
    assert router.last("placed").attempt == current != stale
    assert len(worker.all("run")) == 2


def test_the_router_that_submitted_last_gets_the_messages(stage):
    worker, older, newer = stage.worker(), stage.router("r1"), stage.router("r2", 2)
    older.submit("q")
    newer.submit("q", resume=True, last_attempt=older.last("placed").attempt)
    assert newer.last("placed").attempt == older.last("placed").attempt
    worker.update("lost", worker.last("run"))
    assert newer.last("lost").request_id == "q" and not older.all("lost")


def test_a_lost_attempt_is_placed_anew_only_when_its_router_submits(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("q")
    run = worker.last("run")
    worker.update("lost", run)
    assert router.last("lost").attempt == run.attempt and len(worker.all("run")) == 1
    router.submit("q", resume=True, committed_tokens=4, last_attempt=run.attempt)
    assert worker.last("run").base_index == 4 and len(worker.all("run")) == 2


@pytest.mark.parametrize("kind", ["lost", "not_started", "rejected", "cancelled"])
def test_updates_that_end_a_current_attempt_unfinished_are_lost(stage, kind):
    worker, router = stage.worker(), stage.router()
    router.submit("q")
    worker.update(kind, worker.last("run"))
    assert router.last("lost").attempt == worker.last("run").attempt


def test_updates_about_older_attempts_change_nothing(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("q")
    old = worker.last("run")
    router.submit("q", resume=True, last_attempt=old.attempt, last_attempt_failed=True)
    for kind in ("lost", "finished", "cancelled", "gave_up", "revoked", "not_started"):
        worker.update(kind, old)
    assert not router.all("lost") and len(worker.all("run")) == 2


def test_a_finished_attempt_is_placed_again_so_that_its_tokens_can_be_replayed(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("q")
    worker.update("finished", worker.last("run"), output_tokens=5)
    router.submit("q", resume=True, last_attempt=worker.last("run").attempt)
    assert router.last("placed").started and len(worker.all("run")) == 1
    router.submit("q", resume=True, last_attempt=worker.last("run").attempt, last_attempt_failed=True)
    assert len(worker.all("run")) == 2


def test_a_finished_attempt_whose_worker_is_gone_is_placed_anew(stage):
    worker, router = stage.worker("w1"), stage.router()
    router.submit("q")
    worker.update("finished", worker.last("run"))
    other = stage.worker("w2")
    worker.disconnect()
    stage.tick(600, other, router)
    router.submit("q", resume=True, last_attempt=worker.last("run").attempt)
    assert other.last("run").request_id == "q"


def test_more_than_sixteen_attempts_are_refused_for_good(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("q")
    for _ in range(16):
        worker.update("lost", worker.last("run"))
        router.submit("q", resume=True, last_attempt=worker.last("run").attempt)
    assert len(worker.all("run")) == 16
    refused = router.last("refused")
    assert refused.reason == rs.REFUSAL_REASON_ATTEMPTS_EXHAUSTED and refused.retry_after_us == 0


def test_without_a_ready_worker_a_request_is_held_then_placed_when_one_turns_up(stage):
    router = stage.router()
    router.submit("q")
    assert router.last("queued").decision.reason == "no_ready_worker"
    router.submit("q", resume=True)
    assert len(router.all("queued")) == 2
    worker = stage.worker()
    assert worker.last("run").request_id == "q" and router.last("placed").request_id == "q"


def test_held_too_long_is_refused_and_refused_again(stage):
    router = stage.router()
    router.submit("q")
    stage.tick(29_800, router)
    assert not router.all("refused")
    stage.tick(200, router)
    assert router.last("refused").reason == rs.REFUSAL_REASON_NO_WORKER
    assert router.last("refused").retry_after_us > 0
    router.submit("q", resume=True)
    assert router.all("refused")[0] == router.all("refused")[1]


def test_a_full_hold_queue_refuses_with_a_hint(make_stage):
    stage = make_stage(Rules(hold_limit=2))
    router = stage.router()
    for number in range(3):
        router.submit(f"q{number}")
    refused = router.last("refused")
    assert refused.request_id == "q2" and refused.reason == rs.REFUSAL_REASON_QUEUE_FULL and refused.retry_after_us
    assert len(router.all("queued")) == 2


def test_a_request_over_every_context_is_unservable(stage):
    stage.worker(context_length=120)
    router = stage.router()
    router.submit("q", prompt_tokens=100, max_tokens=50)
    assert router.last("refused").reason == rs.REFUSAL_REASON_UNSERVABLE
    assert "120" in router.last("refused").message


def test_only_workers_with_enough_context_are_chosen(stage):
    small, large, router = stage.worker("a", context_length=120), stage.worker("b"), stage.router()
    for number in range(4):
        router.submit(f"q{number}")
    assert len(large.all("run")) == 4 and not small.all("run")


def test_a_deadline_in_the_past_is_refused_only_where_the_tier_says_so(stage):
    stage.worker()
    router = stage.router()
    router.submit("lenient", age_us=2_000_000)
    assert router.last("placed").request_id == "lenient"
    router.submit("strict", slo=stage.slo(on_violation=slo_pb2.ON_VIOLATION_REFUSE), age_us=2_000_000)
    assert router.last("refused").reason == rs.REFUSAL_REASON_DEADLINE_PAST


def test_cancel_reaches_the_worker_and_no_late_submit_resurrects_the_request(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("q")
    router.cancel("q")
    assert worker.last("cancel").attempt == worker.last("run").attempt
    stage.tick(59_000, worker, router)
    router.submit("q", resume=True)
    assert router.last("refused").message == "cancelled" and len(worker.all("run")) == 1


def test_a_cancel_that_overtakes_its_submit_wins(stage):
    worker, router = stage.worker(), stage.router()
    router.cancel("q")
    router.submit("q")
    assert not worker.all("run") and router.last("refused").request_id == "q"


def test_a_held_request_can_be_cancelled(stage):
    router = stage.router()
    router.submit("q")
    router.cancel("q")
    assert not stage.worker().all("run")


def test_ended_requests_are_forgotten_after_their_retention(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("q")
    worker.update("finished", worker.last("run"))
    router.done("q")
    stage.tick(119_000, worker, router, step_ms=500)
    assert stage.kinds("q")[-1] == ("finish", "worker")
    stage.tick(2_000, worker, router, step_ms=500)
    assert stage.kinds("q") == [] and len(stage.core.cell.book) == 0


def test_retained_requests_are_bounded(make_stage):
    stage = make_stage(Rules(retained_limit=10))
    worker, router = stage.worker(), stage.router()
    for number in range(50):
        router.submit(f"q{number}")
        worker.update("finished", worker.last("run"))
    assert len(stage.core.cell.book) == 10 and stage.kinds("q49")


def test_active_requests_are_bounded(make_stage):
    stage = make_stage(Rules(active_limit=1))
    stage.worker()
    router = stage.router()
    router.submit("a")
    router.submit("b")
    assert router.last("refused").reason == rs.REFUSAL_REASON_QUEUE_FULL


def test_decisions_kept_per_request_are_bounded_and_explain_themselves(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("q")
    for _ in range(15):
        worker.update("lost", worker.last("run"))
        router.submit("q", resume=True)
    decisions = stage.core.explain("q", stage.now_us)
    assert len(decisions) == 31 and all(decision.kind and decision.reason for decision in decisions)
    place = next(decision for decision in decisions if decision.kind == "place")
    assert place.numbers["candidates"] == 1 and place.leader_epoch == 7


def test_another_tenant_who_names_the_id_gets_nothing_of_the_request(stage):
    worker = stage.worker()
    owner, thief = stage.router("r1"), stage.router("r2")
    owner.submit("q", tenant="owner")
    thief.submit("q", tenant="thief", resume=True)
    assert thief.last("refused").reason == rs.REFUSAL_REASON_UNSERVABLE and not thief.all("placed")
    assert len(worker.all("run")) == 1
    owner.submit("q", tenant="owner", resume=True)
    assert owner.last("placed").attempt == worker.last("run").attempt
