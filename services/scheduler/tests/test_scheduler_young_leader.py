"""What a new leader does with requests that another leader may have placed."""

from __future__ import annotations

from hyperflexis_common.attempt import Attempt, WorkerKey
from hyperflexis_scheduler.core.loads import TIGHTEST


class TestYoungLeader:
    def test_places_fresh_requests_at_once(self, make_stage):
        stage = make_stage(known=[WorkerKey("w1", 1), WorkerKey("w2", 1)])
        worker, router = stage.worker("w1"), stage.router()
        router.submit("q")
        assert worker.last("run").request_id == "q"

    def test_waits_with_resumed_requests_for_every_known_snapshot(self, make_stage):
        stage = make_stage(known=[WorkerKey("w1", 1), WorkerKey("w2", 1)])
        first, router = stage.worker("w1"), stage.router()
        router.submit("q", resume=True, last_attempt=Attempt(6, 3).proto(), committed_tokens=2)
        assert router.last("queued").decision.reason == "new_leader" and not first.all("run")
        second = stage.worker("w2", snapshot=False)
        second.snapshot(stage.status("q", (6, 3)))
        placed = router.last("placed")
        assert placed.attempt == Attempt(6, 3).proto() and placed.started and placed.worker.worker_id == "w2"
        assert not first.all("run") and not second.all("run") and not second.all("cancel")

    def test_stops_waiting_after_two_seconds(self, make_stage):
        stage = make_stage(known=[WorkerKey("w1", 1), WorkerKey("w2", 1)])
        worker, router = stage.worker("w1"), stage.router()
        router.submit("q", resume=True, last_attempt=Attempt(6, 3).proto(), committed_tokens=2)
        stage.tick(1_900, worker, router)
        assert not worker.all("run")
        stage.tick(100, worker, router)
        assert worker.last("run").base_index == 2

    def test_waits_the_whole_time_when_nobody_knows_the_workers(self, make_stage):
        stage = make_stage(known=None)
        worker, router = stage.worker("w1"), stage.router()
        router.submit("q", resume=True)
        assert not worker.all("run")
        stage.tick(2_000, worker, router)
        assert worker.last("run").request_id == "q"

    def test_knows_the_tpot_of_an_adopted_decode_once_its_router_has_told(self, make_stage):
        stage = make_stage(known=[WorkerKey("w1", 1)])
        worker, router = stage.worker("w1", snapshot=False), stage.router()
        worker.snapshot(stage.status("q", (6, 3)))
        router.submit("q", resume=True, last_attempt=Attempt(6, 3).proto(), committed_tokens=2)
        fleet = stage.core.cell.fleet
        assert fleet.loads.get(fleet.by_id["w1"].slot, TIGHTEST) == stage.slo().tpot_us

    def test_does_not_adopt_an_attempt_that_the_router_knows_is_superseded(self, make_stage):
        stage = make_stage(known=[WorkerKey("w1", 1)])
        worker = stage.worker("w1", snapshot=False)
        worker.snapshot(stage.status("q", (6, 3)))
        router = stage.router()
        router.submit("q", resume=True, last_attempt=Attempt(6, 4).proto())
        assert worker.last("cancel").attempt == Attempt(6, 3).proto()
        assert worker.last("run").attempt == Attempt(7, 1).proto()

    def test_does_not_adopt_a_superseded_attempt_for_a_request_that_waits(self, make_stage):
        stage = make_stage(known=[WorkerKey("w1", 1), WorkerKey("w2", 1)])
        router = stage.router()
        router.submit("q", resume=True, last_attempt=Attempt(6, 4).proto())
        worker = stage.worker("w1", snapshot=False)
        worker.snapshot(stage.status("q", (6, 3)))
        assert worker.last("cancel").attempt == Attempt(6, 3).proto() and not router.all("placed")
        holder = stage.worker("w2", snapshot=False)
        holder.snapshot(stage.status("q", (6, 4)))
        assert router.last("placed").attempt == Attempt(6, 4).proto() and not holder.all("cancel")

    def test_does_not_adopt_an_attempt_that_failed_for_its_router(self, make_stage):
        stage = make_stage(known=[WorkerKey("w1", 1), WorkerKey("w2", 1)])
        router = stage.router()
        router.submit("q", resume=True, last_attempt=Attempt(6, 3).proto(), last_attempt_failed=True)
        worker = stage.worker("w1", snapshot=False)
        worker.snapshot(stage.status("q", (6, 3)))
        assert worker.last("cancel").attempt == Attempt(6, 3).proto() and not router.all("placed")
        stage.worker("w2")
        assert router.last("placed").attempt == Attempt(7, 1).proto()
