"""Sessions that break, fall silent or end, and who may register."""

from __future__ import annotations

import pytest

from hyperflexis.common.v1 import capability_pb2, identity_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_scheduler.core.actions import Outcome
from hyperflexis_scheduler.core.memory import Memory, WorkerRecord

MS = 1_000


class TestSessions:
    def test_a_break_within_the_grace_changes_nothing(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        run = worker.last("run")
        worker.disconnect()
        stage.tick(400, router)
        again = stage.worker(snapshot=False)
        again.snapshot(stage.status("q", (7, run.attempt.seq)))
        stage.tick(1_000, router, again)
        assert not router.all("lost") and not again.all("cancel")

    def test_after_the_grace_its_attempts_are_lost_and_routers_drop_it(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        worker.disconnect()
        stage.tick(400, router)
        assert not router.all("lost")
        stage.tick(100, router)
        assert router.last("lost").decision.reason == "worker_gone"
        assert router.last("workers").removed[0].worker_id == "w1"

    def test_nothing_new_goes_to_a_worker_in_its_grace(self, stage):
        worker, router = stage.worker(), stage.router()
        worker.disconnect()
        router.submit("q")
        assert router.last("queued") and not worker.all("run")

    def test_silence_of_three_seconds_is_a_break(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        stage.tick(2_900, router)
        assert worker.closed is None
        stage.tick(600, router)
        assert "silent" in worker.closed and router.all("lost")

    def test_a_stall_of_the_scheduler_is_nobody_elses_silence(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        stage.tick(1_000, worker, router)
        stage.tick(60_000, step_ms=60_000)
        stage.tick(2_000)
        assert worker.closed is router.closed is None and not router.all("lost")
        stage.tick(2_000)
        assert worker.closed and router.closed

    def test_a_stall_does_not_use_up_a_grace(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        worker.disconnect()
        stage.tick(5_000, router, step_ms=5_000)
        assert not router.all("lost")

    def test_a_silent_router_loses_its_session_and_a_new_one_takes_over_its_requests(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        stage.tick(3_100, worker)
        assert "silent" in router.closed
        again = stage.router()
        worker.update("lost", worker.last("run"))
        assert again.last("lost").request_id == "q"

    def test_sessions_are_pinged_each_second_and_ages_are_corrected_by_the_delay(self, stage):
        worker, router = stage.worker(), stage.router()
        stage.tick(100, worker, router)
        ping = router.last("ping")
        stage.now_us += 40 * MS
        router.send(rs.RouterSessionRequest(pong=rs.Pong(id=ping.id)))
        router.submit("q", age_us=1_000)
        assert worker.last("run").age_us == 1_000 + 20 * MS
        stage.tick(3_000, worker, router)
        assert len(router.all("ping")) == len(worker.all("ping")) == 4
        assert router.last("ping").one_way_delay_us == 20 * MS

    def test_a_second_session_of_a_router_replaces_the_first(self, stage):
        first, second = stage.router(), stage.router()
        assert first.closed and second.closed is None
        stage.router(incarnation=9)
        assert second.closed is None

    def test_every_event_for_a_scheduler_that_does_not_lead_is_answered_not_leader(self, stage):
        worker, router = stage.worker(), stage.router()
        stage.act(stage.core.end)
        assert worker.closed and router.closed
        worker, router = stage.worker(snapshot=False), stage.router()
        assert worker.last("not_leader") is not None and router.last("not_leader") is not None
        assert worker.closed and router.closed
        router.submit("q")
        stage.tick(100)
        assert stage.apply(action_id="a").outcome is Outcome.NOT_LEADER

    def test_an_ended_reign_is_forgotten(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        stage.act(stage.core.end)
        stage.act(stage.core.begin, identity_pb2.Fence(epoch=9, leader_id="me"), None)
        assert stage.kinds("q") == [] and not stage.core.cluster(stage.now_us).workers
        del worker

    @pytest.mark.parametrize(
        "epoch, leader_id, expected", [(6, "you", []), (7, "me", []), (7, "you", [7]), (8, "you", [8])]
    )
    def test_a_fence_that_is_not_ours_nor_older_is_reported(self, stage, epoch, leader_id, expected):
        stage.worker().pong(1, epoch, leader_id)
        assert stage.higher_epochs == expected


class TestRegistration:
    @pytest.mark.parametrize(
        "fields, reason",
        [
            ({"protocol_version": 2}, ws.Rejected.REASON_PROTOCOL_VERSION),
            ({"fingerprint": b"other"}, ws.Rejected.REASON_FINGERPRINT),
            ({"address": ""}, ws.Rejected.REASON_INVALID),
        ],
    )
    def test_a_worker_that_does_not_fit_is_rejected_for_good(self, stage, fields, reason):
        worker = stage.worker("w1")
        stage.tick(10_000, worker)
        rejected = stage.worker("w2", snapshot=False, **fields)
        assert rejected.last("rejected").reason == reason and rejected.last("rejected").permanent and rejected.closed

    def test_another_model_may_have_another_fingerprint(self, stage):
        stage.worker("w1")
        assert stage.worker("w2", model="n", fingerprint=b"other").all("registered")

    def test_a_new_incarnation_replaces_the_old_life_at_once_and_for_ever(self, stage):
        old, router = stage.worker(incarnation=1), stage.router()
        router.submit("q")
        new = stage.worker(incarnation=2)
        assert old.closed and router.last("lost").decision.reason == "replaced"
        router.submit("q", resume=True, last_attempt=old.last("run").attempt)
        assert new.last("run").request_id == "q"
        ghost = stage.worker(incarnation=1, snapshot=False)
        assert ghost.last("rejected").reason == ws.Rejected.REASON_INCARNATION
        assert new.closed is None

    def test_incarnations_retired_under_an_older_leader_stay_retired(self, stage):
        record = WorkerRecord(WorkerKey("w1", 2), "w1:1", "m", b"f", retired=(1,))
        stage.act(stage.core.begin, identity_pb2.Fence(epoch=8, leader_id="me"), Memory((record,)))
        assert stage.worker(snapshot=False).last("rejected").permanent

    def test_routers_hear_of_a_worker_before_it_is_ready(self, stage):
        router = stage.router()
        assert router.last("workers").full
        worker = stage.worker(snapshot=False, readiness=capability_pb2.READINESS_LOADING)
        assert router.last("workers").workers[0].readiness == capability_pb2.READINESS_LOADING
        worker.snapshot(readiness=capability_pb2.READINESS_LOADING)
        router.submit("q")
        assert router.last("queued")
        worker.report(readiness=capability_pb2.READINESS_READY)
        assert worker.last("run").request_id == "q"
        assert router.last("workers").workers[0].readiness == capability_pb2.READINESS_READY

    def test_nothing_is_sent_to_a_worker_before_its_snapshot(self, stage):
        worker, router = stage.worker(snapshot=False), stage.router()
        router.submit("q")
        assert not worker.all("run")
        worker.report()
        assert worker.closed

    def test_a_gap_in_the_reports_ends_the_session(self, stage):
        worker = stage.worker()
        worker._report_seq = 4
        worker.report()
        assert "missing" in worker.closed

    def test_a_command_that_never_arrives_ends_the_session_and_its_run_is_lost(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        for _ in range(20):
            worker.report(applied_seq=0)
            stage.tick(100, router)
        assert worker.closed is None
        for _ in range(2):
            worker.report(applied_seq=0)
            stage.tick(100, router)
        assert "command 1 never came" in worker.closed
        stage.worker()
        assert router.last("lost").decision.reason == "not_in_snapshot"

    def test_a_stall_of_the_scheduler_is_no_lost_command(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        worker.report(applied_seq=0)
        stage.tick(10_000, step_ms=10_000)
        worker.report(applied_seq=0)
        assert worker.closed is None
