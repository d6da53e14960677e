"""The engine dies and comes back: what it had, what comes meanwhile, what is said of it."""

from __future__ import annotations

from worker_rig import FIRST, SECOND, Update, ready

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.effects import AddSequence


def test_a_lost_engine_loses_what_it_worked_on_and_keeps_what_it_finished() -> None:
    rig = ready()
    for name in ("done", "live"):
        rig.run(name)
        rig.start(name)
    rig.step(("done", FIRST, 0, 5), ended=("done", FIRST))
    rig.lose_engine()
    assert [gone.request_id for gone in rig.gone()] == ["live"]
    assert ("live", Update.KIND_LOST) in rig.told()
    assert rig.core.readiness == capability_pb2.READINESS_LOADING
    assert [status.request_id for status in rig.core.requests.statuses()] == ["done"]
    rig.core.engine_ready(rig.now_us)
    assert rig.core.readiness == capability_pb2.READINESS_READY

    rig.run("next")
    rig.start("next")
    assert rig.of(AddSequence)


def test_a_half_request_is_lost_with_the_engine_and_its_start_is_told_at_once() -> None:
    rig = ready()
    rig.run()
    rig.lose_engine()
    assert ("a", Update.KIND_LOST) in rig.told()
    rig.start()
    assert [gone.reason for gone in rig.gone()] == [tf.Gone.REASON_DROPPED]
    assert rig.core.requests.unfinished == 0


def test_what_comes_while_no_engine_serves_is_lost_at_once() -> None:
    """The scheduler places it elsewhere, or holds it until this worker is ready."""
    for first, second in (("run", "start"), ("start", "run")):
        rig = ready()
        rig.lose_engine()
        getattr(rig, first)()
        if first == "run":
            assert ("a", Update.KIND_LOST) in rig.updates()
        getattr(rig, second)()
        assert not rig.of(AddSequence), "nobody would take it"
        assert [gone.reason for gone in rig.gone()] == [tf.Gone.REASON_DROPPED]
        if first == "start":
            assert ("a", Update.KIND_LOST) in rig.updates()
        assert rig.core.requests.unfinished == 0
        rig.engine_ready()
        load = rig.core.requests.load(rig.now_us + 60 * SECOND)
        assert (load.waiting, load.running, load.stalled_us) == (0, 0, 0), "no work that nobody has"
        rig.run(attempt=Attempt(1, 2))
        rig.start(attempt=Attempt(1, 2))
        assert rig.of(AddSequence)


def test_a_start_that_came_too_early_runs_with_the_engine_that_comes() -> None:
    rig = ready()
    rig.lose_engine()
    rig.start()
    rig.engine_ready()
    rig.run()
    assert rig.of(AddSequence)


def test_time_without_an_engine_is_no_stall() -> None:
    rig = ready()
    rig.run()
    rig.start()
    rig.now_us += 25 * SECOND
    rig.lose_engine()
    assert rig.core.requests.load(rig.now_us + 600 * SECOND).stalled_us == 0
    rig.now_us += 600 * SECOND
    rig.engine_ready()
    rig.run("b")
    rig.start("b")
    assert rig.core.requests.load(rig.now_us + SECOND).stalled_us == SECOND


def test_a_worker_without_an_engine_says_so_in_every_report() -> None:
    rig = ready()
    rig.lose_engine()
    for _ in range(3):
        rig.pass_time(SECOND)
        (report,) = rig.reports()
        assert report.readiness == capability_pb2.READINESS_LOADING
        assert report.busy.reason == "loading engine"
        assert report.busy.for_us > 2 * SECOND, "one report may be lost"
    rig.engine_ready()
    rig.pass_time(SECOND)
    (report,) = rig.reports()
    assert not report.HasField("busy") and report.readiness == capability_pb2.READINESS_READY


def test_an_engine_that_fails_again_and_again() -> None:
    rig = ready()
    rig.lose_engine()
    rig.lose_engine()
    rig.engine_ready()
    rig.lose_engine()
    rig.run()
    assert not rig.of(AddSequence)
    rig.engine_ready()
    assert rig.core.readiness == capability_pb2.READINESS_READY


def test_an_undone_drain_does_not_hide_that_no_engine_serves() -> None:
    rig = ready()
    rig.command(drain=ws.Drain())
    rig.lose_engine()
    assert rig.core.readiness == capability_pb2.READINESS_DRAINING
    rig.command(drain=ws.Drain(undo=True))
    assert rig.core.readiness == capability_pb2.READINESS_LOADING


def test_whoever_stops_the_process_has_the_last_word() -> None:
    rig = ready()
    rig.take(rig.core.drain(rig.now_us))
    rig.command(drain=ws.Drain(undo=True))
    assert rig.core.readiness == capability_pb2.READINESS_DRAINING
    rig.run()
    assert ("a", Update.KIND_REJECTED) in rig.updates()
