"""What a worker's snapshot says of its work, and what happens to the work of one that hangs."""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.attempt import Attempt, WorkerKey


class TestSnapshots:
    def test_a_lost_run_is_declared_lost(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        worker.disconnect()
        stage.worker()
        assert router.last("lost").decision.reason == "not_in_snapshot"

    def test_a_run_on_its_way_is_not_declared_lost_by_an_older_snapshot(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        worker.snapshot()
        assert not router.all("lost")

    def test_attempts_that_are_not_current_are_cancelled(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        router.cancel("gone")
        worker.disconnect()
        again = stage.worker(snapshot=False)
        again.snapshot(
            stage.status("q", (7, 1)), stage.status("gone", (6, 1)), stage.status("never", (7, 99), "WAITING")
        )
        assert [cancel.request_id for cancel in again.all("cancel")] == ["gone", "never"]

    def test_the_higher_of_two_attempts_found_survives(self, make_stage):
        stage = make_stage(known=[WorkerKey("w1", 1), WorkerKey("w2", 1)])
        first, router = stage.worker("w1", snapshot=False), stage.router()
        first.snapshot(stage.status("q", (6, 1)))
        router.submit("q", resume=True, last_attempt=Attempt(6, 1).proto())
        second = stage.worker("w2", snapshot=False)
        second.snapshot(stage.status("q", (6, 2)))
        assert first.last("cancel").attempt == Attempt(6, 1).proto() and not second.all("cancel")
        assert router.last("placed").attempt == Attempt(6, 2).proto()

    def test_a_finished_attempt_is_found_and_replayed(self, make_stage):
        stage = make_stage(known=[WorkerKey("w1", 1)])
        router = stage.router()
        router.submit("q", resume=True, last_attempt=Attempt(6, 1).proto())
        worker = stage.worker(snapshot=False)
        worker.snapshot(stage.status("q", (6, 1), "FINISHED"))
        assert router.last("placed").started and not worker.all("run") and not worker.all("cancel")

    def test_a_request_that_only_a_snapshot_knows_is_not_moved_without_its_router(self, stage):
        worker = stage.worker(snapshot=False)
        status = stage.status("q", (6, 1), "WAITING")
        worker.snapshot(status)
        worker.update("gave_up", status)
        stage.worker("w2")
        router = stage.router()
        router.submit("q", resume=True, last_attempt=Attempt(6, 1).proto(), committed_tokens=3)
        assert router.last("placed").base_index == 3


class TestHangs:
    def hang(self, stage, worker, router, **fields):
        for _ in range(25):
            worker.report(load={"running": 1, "steps": 5}, **fields)
            stage.tick(100, router)

    def test_work_without_a_step_is_a_hang_and_its_requests_are_lost(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        self.hang(stage, worker, router)
        assert router.last("lost").decision.reason == "worker_hung" and worker.last("cancel").request_id == "q"
        router.submit("q", resume=True)
        assert router.last("queued")

    def test_a_declared_pause_is_no_hang(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        worker.report(busy=ws.Busy(reason="capturing", for_us=10_000_000))
        self.hang(stage, worker, router)
        assert not router.all("lost")

    def test_slow_steps_are_no_hang_where_they_were_predicted(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        self.hang(stage, worker, router, step_time=capability_pb2.StepTimeModel(c0_us=300_000))
        assert not router.all("lost")

    def test_an_idle_worker_never_hangs(self, stage):
        worker, router = stage.worker(), stage.router()
        for _ in range(50):
            worker.report(load={"steps": 5})
            stage.tick(100, router)
        router.submit("q")
        assert worker.last("run")

    def test_a_hung_worker_comes_back_with_a_snapshot_after_a_step(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        self.hang(stage, worker, router)
        worker.disconnect()
        still = stage.worker(snapshot=False).snapshot(steps=5, running=1)
        router.submit("a")
        assert not still.all("run")
        still.report(load={"steps": 6})
        assert still.closed
        stage.worker(snapshot=False).snapshot(steps=6)
        assert router.last("placed").request_id == "a"

    def test_a_hung_worker_that_has_dropped_its_work_comes_back_without_a_step(self, stage):
        worker, router = stage.worker(), stage.router()
        router.submit("q")
        self.hang(stage, worker, router)
        worker.report(load={"running": 1, "steps": 5})
        assert not worker.closed
        worker.report(load={"running": 0, "steps": 5})
        assert worker.closed
        stage.worker(snapshot=False).snapshot(steps=5)
        router.submit("a")
        assert router.last("placed").request_id == "a"


def test_the_cluster_shows_workers_requests_tiers_and_routers(stage):
    worker, router = stage.worker(), stage.router()
    router.submit("a")
    router.submit("b", model="none")
    worker.update("finished", worker.last("run"), output_tokens=12)
    router.submit("c")
    cluster = stage.core.cluster(stage.now_us)
    assert (cluster.held, cluster.active, list(cluster.routers)) == (1, 1, ["r1"])
    (tier,) = cluster.tiers
    assert (tier.submitted, tier.placed, tier.finished, tier.output_tokens) == (3, 2, 1, 12)
    assert cluster.workers[0].address == "w1:1" and cluster.fence.epoch == 7
