"""The worker's rules of its session: commands, attempts, tombstones, reports."""

from __future__ import annotations

from worker_rig import SECOND, Rig, Update, ready

from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.effects import AddSequence, DropScheduler, DropSequence, Leave, RevokeSequence, ToScheduler
from hyperflexis_worker.core.halves import HALF_LIMIT_US


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


def test_draining_takes_nothing_new() -> None:
    rig = ready()
    rig.command(drain=ws.Drain())
    rig.run()
    assert ("a", Update.KIND_REJECTED) in rig.updates()
    rig.command(drain=ws.Drain(undo=True))
    rig.run("b")
    rig.start("b")
    assert rig.of(AddSequence)
