"""Work that changes its worker: drained, balanced; and the orders of a scaler."""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2, identity_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_scheduler.core.actions import Outcome
from hyperflexis_scheduler.core.dispatch_policy import RoundRobin
from hyperflexis_scheduler.core.rules import Rules


class TestMoving:
    def test_a_drain_takes_back_unstarted_work_only(self, make_stage):
        stage = make_stage(policy=RoundRobin())
        worker, router = stage.worker("w1"), stage.router()
        router.submit("running")
        running = worker.last("run")
        worker.update("started", running)
        router.submit("waiting")
        waiting = worker.last("run")
        other = stage.worker("w2")
        stage.apply(action_id="a", worker_id="w1", drain=ws.Drain(reason="scale in"))
        stage.tick(200, worker, other, router)
        assert [revoke.request_id for revoke in worker.all("revoke")] == ["waiting"]
        assert not other.all("run")
        worker.update("revoked", waiting)
        assert other.last("run").request_id == "waiting" and not router.all("lost")
        router.submit("new")
        assert other.last("run").request_id == "new"

    def test_work_stays_on_a_leaving_worker_while_there_is_no_other_place(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        stage.apply(action_id="a", worker_id="w1", drain=ws.Drain())
        stage.tick(500, worker, router)
        assert not worker.all("revoke")

    def test_an_idle_worker_gets_work_from_a_busy_one(self, stage):
        busy, router = stage.worker("w1"), stage.router()
        for name in ("a", "b", "c"):
            router.submit(name)
        idle = stage.worker("w2")
        stage.tick(1_000, busy, idle, router)
        assert [revoke.request_id for revoke in busy.all("revoke")] == ["c"]
        busy.update("revoked", busy.all("run")[2])
        assert idle.last("run").request_id == "c"
        stage.tick(1_000, busy, idle, router)
        assert len(busy.all("revoke")) == 1

    def test_a_refused_revocation_leaves_the_work_where_it_is(self, stage):
        busy, router = stage.worker("w1"), stage.router()
        router.submit("a")
        router.submit("b")
        idle = stage.worker("w2")
        stage.tick(100, busy, idle, router)
        busy.update("not_revoked", busy.last("run"))
        stage.tick(1_000, busy, idle, router)
        assert [revoke.request_id for revoke in busy.all("revoke")] == ["b", "a"]
        assert not idle.all("run")

    def test_a_revocation_that_a_broken_session_lost_is_repeated(self, stage):
        worker, router = stage.worker("w1"), stage.router()
        router.submit("q")
        run = worker.last("run")
        other = stage.worker("w2")
        stage.apply(action_id="a", worker_id="w1", drain=ws.Drain())
        stage.tick(200, worker, other, router)
        worker.disconnect()
        again = stage.worker("w1", snapshot=False)
        again.snapshot(stage.status("q", (run.attempt.leader_epoch, run.attempt.seq), "WAITING"))
        stage.tick(200, again, other, router)
        assert [revoke.attempt for revoke in again.all("revoke")] == [run.attempt]

    def test_revocations_that_a_broken_session_lost_do_not_keep_idle_workers_idle(self, stage):
        busy, router = stage.worker("w1"), stage.router()
        for name in ("a", "b", "c"):
            router.submit(name)
        idle = stage.worker("w2")
        stage.tick(200, busy, idle, router)
        assert [revoke.request_id for revoke in busy.all("revoke")] == ["c"]
        runs = [(run.request_id, (run.attempt.leader_epoch, run.attempt.seq)) for run in busy.all("run")]
        busy.disconnect()
        again = stage.worker("w1", snapshot=False)
        again.snapshot(*(stage.status(*run, "WAITING") for run in runs))
        stage.tick(200, again, idle, router)
        assert [revoke.request_id for revoke in again.all("revoke")] == ["c"]
        again.update("revoked", again.last("revoke"))
        assert idle.last("run").request_id == "c"

    def test_revocations_are_bounded_per_round(self, make_stage):
        stage = make_stage(Rules(revokes_per_round=2))
        worker, router = stage.worker("w1"), stage.router()
        for number in range(9):
            router.submit(f"q{number}")
        other = stage.worker("w2")
        stage.apply(action_id="a", worker_id="w1", drain=ws.Drain())
        stage.tick(100, worker, other, router)
        assert len(worker.all("revoke")) == 2
        stage.tick(300, worker, other, router)
        assert len(worker.all("revoke")) == 8


class TestActions:
    def test_outcomes(self, stage):
        worker = stage.worker()
        drain = {"worker_id": "w1", "drain": ws.Drain()}
        assert stage.apply(action_id="1", **drain).outcome is Outcome.APPLIED
        assert stage.apply(action_id="1", **drain).outcome is Outcome.REPEATED
        assert len(worker.all("drain")) == 1
        assert stage.apply(action_id="", **drain).outcome is Outcome.INVALID
        assert stage.apply(action_id="2", worker_id="w1").outcome is Outcome.INVALID
        assert stage.apply(action_id="2", worker_id="w9", drain=ws.Drain()).outcome is Outcome.NOT_FOUND
        link = stage.apply(action_id="2", worker_id="w1", load_weights=ws.LoadWeights())
        assert link.outcome is Outcome.UNIMPLEMENTED and "load_weights" in link.message

    def test_a_scaler_that_was_replaced_is_refused(self, stage):
        stage.worker()
        drain = {"worker_id": "w1", "drain": ws.Drain()}
        stage.apply(action_id="1", scaler_fence=identity_pb2.Fence(epoch=3), **drain)
        result = stage.apply(action_id="2", scaler_fence=identity_pb2.Fence(epoch=2), **drain)
        assert result.outcome is Outcome.STALE_FENCE
        assert stage.apply(action_id="3", **drain).outcome is Outcome.APPLIED

    def test_orders_are_repeated_after_a_broken_session(self, stage):
        worker = stage.worker()
        stage.apply(action_id="1", worker_id="w1", drain=ws.Drain(reason="scale in"))
        stage.apply(action_id="2", worker_id="w1", set_role=ws.SetRole(role=capability_pb2.ROLE_DECODE))
        worker.disconnect()
        again = stage.worker()
        assert again.last("drain").reason == "scale in"
        assert again.last("set_role").role == capability_pb2.ROLE_DECODE

    def test_a_drain_can_be_undone(self, stage):
        worker, router = stage.worker(), stage.router()
        stage.apply(action_id="1", worker_id="w1", drain=ws.Drain())
        router.submit("q")
        stage.apply(action_id="2", worker_id="w1", drain=ws.Drain(undo=True))
        assert worker.last("run").request_id == "q"

    def test_a_drain_undone_while_the_worker_is_away_is_undone_when_it_is_back(self, stage):
        worker = stage.worker()
        stage.apply(action_id="1", worker_id="w1", drain=ws.Drain())
        worker.report(readiness=capability_pb2.READINESS_DRAINING)
        worker.disconnect()
        assert stage.apply(action_id="2", worker_id="w1", drain=ws.Drain(undo=True)).outcome is Outcome.APPLIED
        again = stage.worker(readiness=capability_pb2.READINESS_DRAINING, snapshot=False)
        again.snapshot(readiness=capability_pb2.READINESS_DRAINING)
        assert again.last("drain").undo

    def test_an_undone_drain_is_repeated_until_a_report_shows_it(self, stage):
        worker = stage.worker(readiness=capability_pb2.READINESS_DRAINING)
        stage.apply(action_id="1", worker_id="w1", drain=ws.Drain(undo=True))
        worker.disconnect()
        again = stage.worker(snapshot=False).snapshot(readiness=capability_pb2.READINESS_DRAINING)
        again.report()
        again.disconnect()
        # It drains of its own accord now, because its process stops.
        stopping = stage.worker(snapshot=False).snapshot(readiness=capability_pb2.READINESS_DRAINING)
        assert again.last("drain").undo and not stopping.all("drain")

    def test_an_undone_drain_is_forgotten_where_the_worker_came_back_ready(self, stage):
        worker = stage.worker()
        stage.apply(action_id="1", worker_id="w1", drain=ws.Drain())
        worker.disconnect()
        stage.apply(action_id="2", worker_id="w1", drain=ws.Drain(undo=True))
        ready = stage.worker()
        ready.disconnect()
        stopping = stage.worker(snapshot=False).snapshot(readiness=capability_pb2.READINESS_DRAINING)
        assert not ready.all("drain") and not stopping.all("drain")

    def test_a_decode_worker_gets_no_new_requests(self, stage):
        decode = stage.worker("w1", role=capability_pb2.ROLE_DECODE)
        other = stage.worker("w2")
        router = stage.router()
        for number in range(4):
            router.submit(f"q{number}")
        assert len(other.all("run")) == 4 and not decode.all("run")

    def test_a_flip_holds_at_once(self, stage):
        """Whatever the worker still reports, and over a new session of it."""
        flipped, other = stage.worker("w1"), stage.worker("w2")
        router = stage.router()
        stage.apply(action_id="1", worker_id="w1", set_role=ws.SetRole(role=capability_pb2.ROLE_DECODE))
        router.submit("a")
        flipped.report(role=capability_pb2.ROLE_MIXED)
        router.submit("b")
        flipped.disconnect()
        again = stage.worker("w1", role=capability_pb2.ROLE_MIXED)
        router.submit("c")
        assert [run.request_id for run in other.all("run")] == ["a", "b", "c"]
        assert again.last("set_role").role == capability_pb2.ROLE_DECODE

    def test_unless_there_is_nobody_else(self, stage):
        """Roles say what is sent to a worker, not what its engine can do."""
        stage.worker(role=capability_pb2.ROLE_DECODE)
        router = stage.router()
        router.submit("q")
        assert router.last("placed")
