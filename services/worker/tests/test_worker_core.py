"""The worker's rules of its session: commands, attempts, tombstones, reports."""

from __future__ import annotations

from worker_rig import SECOND, Rig, Update, ready

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.effects import AddSequence, DropScheduler, DropSequence, Leave, RevokeSequence, ToScheduler
from hyperflexis_worker.core.engine_event import EngineEvent
from hyperflexis_worker.core.requests import HALF_LIMIT_US


def test_registration_is_answered_with_a_snapshot() -> None:
    rig = ready()
    rig.run()
    rig.start()
    rig.connect(epoch=2)
    (effect,) = rig.of(ToScheduler)
    assert isinstance(effect, ToScheduler)
    (status,) = effect.message.snapshot.requests
    assert (status.request_id, status.phase) == ("a", ws.REQUEST_PHASE_WAITING)


def test_run_and_start_meet_in_either_order() -> None:
    for first, second in (("run", "start"), ("start", "run")):
        rig = ready()
        getattr(rig, first)()
        assert not rig.of(AddSequence)
        getattr(rig, second)()
        (add,) = rig.of(AddSequence)
        assert isinstance(add, AddSequence)
        assert add.sequence.prompt == [1, 2, 3]


def test_a_repeated_run_or_start_changes_nothing() -> None:
    rig = ready()
    rig.run()
    rig.start()
    rig.run()
    assert not rig.of(AddSequence)
    rig.start()
    assert not rig.of(AddSequence)


def test_half_a_request_is_dropped_after_its_limit() -> None:
    rig = ready()
    rig.run("a")
    rig.start("b")
    rig.pass_time(HALF_LIMIT_US + 1)
    assert [gone.request_id for gone in rig.gone()] == ["b"]
    kinds = [(u.request_id, u.kind) for e in rig.out if isinstance(e, ToScheduler) for u in e.message.report.updates]
    assert sorted(kinds) == [("a", Update.KIND_NOT_STARTED), ("b", Update.KIND_NOT_STARTED)]


def test_a_higher_attempt_replaces_a_lower_one_and_never_the_other_way() -> None:
    rig = ready()
    rig.run()
    rig.start()
    rig.run(attempt=Attempt(1, 2))
    assert rig.of(DropSequence) == [DropSequence("a", Attempt(1, 1))]
    assert [gone.reason for gone in rig.gone()] == [tf.Gone.REASON_SUPERSEDED]
    rig.start(attempt=Attempt(1, 1))
    assert [gone.reason for gone in rig.gone()] == [tf.Gone.REASON_SUPERSEDED]
    rig.step(("a", Attempt(1, 1), 0, 5))
    assert rig.entries() == [], "a step of the old attempt that was under way is not the new one's"


def test_cancel_before_run_leaves_a_tombstone() -> None:
    rig = ready()
    rig.command(cancel=ws.Cancel(request_id="a", attempt=Attempt(1, 4).proto()))
    rig.start(attempt=Attempt(1, 4))
    assert [gone.reason for gone in rig.gone()] == [tf.Gone.REASON_DROPPED]
    rig.run(attempt=Attempt(1, 4))
    assert ("a", Update.KIND_CANCELLED) in rig.updates()
    rig.run(attempt=Attempt(1, 5))
    rig.start(attempt=Attempt(1, 5))
    assert rig.of(AddSequence), "a later attempt is not what was cancelled"


def test_a_tombstone_lasts_a_minute() -> None:
    rig = ready()
    rig.command(cancel=ws.Cancel(request_id="a", attempt=Attempt(1, 4).proto()))
    rig.pass_time(61 * SECOND)
    rig.run(attempt=Attempt(1, 4))
    rig.start(attempt=Attempt(1, 4))
    assert rig.of(AddSequence)


def test_a_gap_in_the_commands_ends_the_session() -> None:
    rig = ready()
    rig.seq += 1
    rig.run()
    assert rig.of(DropScheduler)
    rig.start()
    assert not rig.of(AddSequence), "nothing of a broken session is applied"


def test_a_stale_leader_is_refused() -> None:
    rig = ready()
    rig.connect(epoch=5)
    rig.command(epoch=4, run=ws.Run(request_id="a", attempt=Attempt(4, 1).proto(), prompt_tokens=3, max_tokens=4))
    assert rig.of(DropScheduler)
    rig.start(attempt=Attempt(4, 1))
    assert not rig.of(AddSequence)


def test_rejection_for_good_makes_the_process_leave() -> None:
    rig = Rig()
    rejected = ws.Rejected(reason=ws.Rejected.REASON_INCARNATION, message="replaced", permanent=True)
    rig.take(rig.core.scheduler_message(ws.WorkerSessionResponse(epoch=1, rejected=rejected), 0))
    assert rig.out == [Leave("replaced")]


def test_revoke_before_the_first_chunk_and_after() -> None:
    rig = ready()
    rig.run("half")
    rig.command(revoke=ws.Revoke(request_id="half", attempt=Attempt(1, 1).proto()))
    assert ("half", Update.KIND_REVOKED) in rig.updates()

    rig.run("waiting")
    rig.start("waiting")
    rig.command(revoke=ws.Revoke(request_id="waiting", attempt=Attempt(1, 1).proto()))
    assert rig.of(RevokeSequence) == [RevokeSequence("waiting", Attempt(1, 1))]
    rig.take(rig.core.engine_revoked("waiting", Attempt(1, 1), True, rig.now_us))
    assert ("waiting", Update.KIND_REVOKED) in rig.updates()

    rig.run("running")
    rig.start("running")
    rig.step(("running", Attempt(1, 1), 0, 5))
    rig.command(revoke=ws.Revoke(request_id="running", attempt=Attempt(1, 1).proto()))
    assert ("running", Update.KIND_NOT_REVOKED) in rig.updates()


def test_a_lost_engine_loses_what_it_worked_on_and_keeps_what_it_finished() -> None:
    rig = ready()
    for name in ("done", "live"):
        rig.run(name)
        rig.start(name)
    rig.step(("done", Attempt(1, 1), 0, 5), ended=("done", Attempt(1, 1)))
    rig.take(rig.core.engine_lost("killed", rig.now_us))
    assert [gone.request_id for gone in rig.gone()] == ["live"]
    assert rig.core.readiness == capability_pb2.READINESS_LOADING
    assert ("live", Update.KIND_LOST) in rig.updates()
    assert [status.request_id for status in rig.core.requests.statuses()] == ["done"]
    rig.core.engine_ready(rig.now_us)
    assert rig.core.readiness == capability_pb2.READINESS_READY


def test_draining_takes_nothing_new() -> None:
    rig = ready()
    rig.command(drain=ws.Drain())
    rig.run()
    assert ("a", Update.KIND_REJECTED) in rig.updates()
    rig.command(drain=ws.Drain(undo=True))
    rig.run("b")
    rig.start("b")
    assert rig.of(AddSequence)


def test_load_counts_what_the_engine_has_not_seen_yet() -> None:
    rig = ready()
    rig.run("a")
    rig.start("a")
    rig.run("b")
    load = rig.core.requests.load(rig.now_us)
    assert (load.waiting, load.queued_prefill_tokens) == (1, 6), "half a request is work to come, not work undone"
    rig.take(rig.core.engine_stepped(EngineEvent(adds_applied=1, running=1, queued_prefill_tokens=1), rig.now_us))
    load = rig.core.requests.load(rig.now_us)
    assert (load.waiting, load.running, load.queued_prefill_tokens) == (0, 1, 4)


def test_a_stall_shows_only_while_there_is_work() -> None:
    rig = ready()
    rig.now_us += 60 * SECOND
    assert rig.core.requests.load(rig.now_us).stalled_us == 0
    rig.run()
    rig.start()
    assert rig.core.requests.load(rig.now_us).stalled_us == 0
    assert rig.core.requests.load(rig.now_us + 3 * SECOND).stalled_us == 3 * SECOND


def test_reports_come_each_second_and_at_once_with_news() -> None:
    rig = ready()
    rig.pass_time(500_000)
    assert not rig.of(ToScheduler)
    rig.pass_time(500_001)
    assert len(rig.of(ToScheduler)) == 1
    rig.pass_time(30_000)
    rig.command(cancel=ws.Cancel(request_id="x", attempt=Attempt(1, 1).proto()))
    (effect,) = rig.of(ToScheduler)
    assert isinstance(effect, ToScheduler)
    assert effect.message.report.applied_seq == 1


def test_no_work_is_given_to_an_engine_that_is_not_there() -> None:
    """Neither what was half here when it died, nor what comes before the next one serves; none of it is work left."""
    rig = ready()
    rig.run("half")
    rig.take(rig.core.engine_lost("killed", rig.now_us))
    assert ("half", Update.KIND_LOST) in rig.updates()
    rig.start("half")
    rig.run("late")
    assert ("late", Update.KIND_LOST) in rig.updates()
    rig.start("late")
    assert not rig.of(AddSequence) and [gone.request_id for gone in rig.gone()] == ["late"]
    rig.take(rig.core.engine_ready(rig.now_us))
    load = rig.core.requests.load(rig.now_us + 60 * SECOND)
    assert (load.waiting, load.running, load.stalled_us) == (0, 0, 0)
    rig.run("next")
    rig.start("next")
    assert [effect.sequence.request_id for effect in rig.of(AddSequence)] == ["next"]


def test_an_engine_that_loads_is_declared_busy() -> None:
    rig = ready()
    rig.take(rig.core.engine_lost("killed", rig.now_us))
    rig.pass_time(SECOND)
    [report] = [e.message.report for e in rig.out if isinstance(e, ToScheduler) and e.message.HasField("report")][-1:]
    assert report.busy.reason and report.busy.for_us > SECOND
    assert report.readiness == capability_pb2.READINESS_LOADING


def test_ages_are_corrected_by_the_way_they_took() -> None:
    rig = ready()
    rig.take(
        rig.core.scheduler_message(
            ws.WorkerSessionResponse(epoch=1, ping=rs.Ping(id=7, one_way_delay_us=250_000)), rig.now_us
        )
    )
    assert [e.message.pong.id for e in rig.of(ToScheduler)] == [7]
    rig.run()
    rig.start()
    [add] = rig.of(AddSequence)
    assert add.sequence.arrival_us == rig.now_us - 250_000
