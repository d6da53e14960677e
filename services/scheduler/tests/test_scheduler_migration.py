"""Requests that move with their caches: the scheduler's part, from AttachKv to the router's Placed."""

from __future__ import annotations

import pytest

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as ss
from hyperflexis_common.attempt import Attempt
from hyperflexis_scheduler.core.actions import Outcome

MOVES = capability_pb2.EngineCapabilities(context_length=1_000, kv_ticket=capability_pb2.KV_TICKET_KIND_BLOCKS)


class Scene:
    """A request that decodes at `source`, another worker `target`, and the router that reads it."""

    def __init__(self, stage):
        self.stage = stage
        self.router = stage.router()
        self.source = stage.worker("w1", capabilities=MOVES)
        self.router.submit("q")
        self.run = self.source.last("run")
        self.source.update("started", self.run)
        self.source.update("first_token", self.run, output_tokens=1)
        self.target = stage.worker("w2", capabilities=MOVES)

    def migrate(self, action_id="1", to="w2", request_id="q"):
        migrate = ss.MigrateRequest(request_id=request_id, target_worker_id=to)
        return self.stage.apply(action_id=action_id, migrate=migrate)

    def begin(self):
        assert self.migrate().outcome is Outcome.APPLIED
        self.attach = self.target.last("attach_kv")
        return self

    def cancelled(self, worker):
        return [Attempt.of(cancel.attempt) for cancel in worker.all("cancel")]

    @property
    def attempt(self):
        return Attempt.of(self.attach.run.attempt)


@pytest.fixture
def scene(stage):
    return Scene(stage)


class TestMove:
    def test_the_target_is_told_where_it_runs_and_the_router_nothing_yet(self, scene):
        scene.begin()
        ticket = scene.attach.ticket
        assert (ticket.source.worker_id, ticket.source.address) == ("w1", "w1:1")
        assert Attempt.of(ticket.attempt) == Attempt.of(scene.run.attempt) < scene.attempt
        assert ticket.num_tokens == 100 and scene.attach.run.prompt_tokens == 100
        assert len(scene.router.all("placed")) == 1

    def test_taken_over_it_is_the_targets_and_its_router_only_asks_there(self, scene):
        scene.begin()
        scene.target.update("attached", scene.attach.run, output_tokens=5)
        placed = scene.router.last("placed")
        assert (placed.worker.worker_id, Attempt.of(placed.attempt), placed.started) == ("w2", scene.attempt, True)
        assert scene.cancelled(scene.source) == [Attempt.of(scene.run.attempt)]
        scene.target.update("finished", scene.attach.run, output_tokens=9)
        assert [kind for kind, _ in scene.stage.kinds("q")][-3:] == ["move", "moved", "finish"]
        assert not scene.stage.core.cluster(scene.stage.now_us).active

    def test_a_move_that_fails_before_the_stop_changes_nothing(self, scene):
        scene.begin()
        scene.target.update("not_attached", scene.attach.run)
        assert not scene.router.all("lost") and len(scene.router.all("placed")) == 1
        assert scene.migrate("2").outcome is Outcome.APPLIED
        assert Attempt.of(scene.target.last("attach_kv").run.attempt) > scene.attempt

    def test_one_that_fails_after_the_stop_is_computed_again(self, scene):
        scene.begin()
        scene.source.update("kv_ready", scene.run, output_tokens=4)
        scene.target.update("not_attached", scene.attach.run)
        assert scene.router.last("lost").attempt == scene.run.attempt

    def test_the_same_where_the_stop_is_heard_of_last(self, scene):
        scene.begin()
        scene.target.update("not_attached", scene.attach.run)
        scene.source.update("kv_ready", scene.run, output_tokens=4)
        assert scene.router.last("lost").attempt == scene.run.attempt

    def test_what_ends_at_its_source_is_not_taken_over(self, scene):
        scene.begin()
        scene.source.update("finished", scene.run, output_tokens=9)
        assert scene.cancelled(scene.target) == [scene.attempt]
        scene.target.update("attached", scene.attach.run)
        assert len(scene.router.all("placed")) == 1

    def test_a_client_that_cancels_ends_both(self, scene):
        scene.begin()
        scene.router.cancel("q")
        assert scene.cancelled(scene.target) == [scene.attempt]
        assert scene.cancelled(scene.source) == [Attempt.of(scene.run.attempt)]


class TestBreaks:
    def test_its_source_dies_and_the_target_drops_what_it_has(self, scene):
        scene.begin()
        scene.source.disconnect()
        scene.stage.tick(1_000, scene.target, scene.router)
        assert scene.router.last("lost").attempt == scene.run.attempt
        assert scene.cancelled(scene.target) == [scene.attempt]

    def test_its_target_dies_and_it_stays(self, scene):
        scene.begin()
        scene.target.disconnect()
        scene.stage.tick(1_000, scene.source, scene.router)
        assert not scene.router.all("lost")
        assert ("move_failed", "worker_gone") in scene.stage.kinds("q")

    def test_the_report_of_the_take_over_is_lost_and_a_snapshot_tells(self, scene):
        scene.begin()
        scene.target.disconnect()
        again = scene.stage.worker("w2", capabilities=MOVES, snapshot=False)
        again.snapshot(scene.stage.status("q", scene.attempt, "DECODE"))
        assert scene.router.last("placed").worker.worker_id == "w2"
        assert not again.all("cancel")

    def test_a_snapshot_in_the_middle_of_it_leaves_it_alone(self, scene):
        scene.begin()
        scene.target.disconnect()
        again = scene.stage.worker("w2", capabilities=MOVES, snapshot=False)
        again.snapshot(scene.stage.status("q", scene.attempt, "ATTACHING"))
        assert not again.all("cancel")
        again.update("attached", scene.attach.run)
        assert scene.router.last("placed").worker.worker_id == "w2"

    def test_a_snapshot_without_it_ends_it(self, scene):
        scene.begin()
        scene.target.disconnect()
        scene.stage.worker("w2", capabilities=MOVES)
        assert ("move_failed", "not_in_snapshot") in scene.stage.kinds("q")

    def test_a_new_leader_knows_of_no_move_and_ends_what_comes(self, make_stage):
        stage = make_stage(epoch=9)
        target = stage.worker("w2", capabilities=MOVES, snapshot=False)
        target.snapshot(stage.status("q", (7, 2), "ATTACHING"))
        source = stage.worker("w1", capabilities=MOVES, snapshot=False)
        source.snapshot(stage.status("q", (7, 1), "DECODE"))
        assert [Attempt.of(cancel.attempt) for cancel in target.all("cancel")] == [Attempt(7, 2)]
        router = stage.router()
        router.submit("q", resume=True, last_attempt=Attempt(7, 1).proto(), committed_tokens=3)
        assert router.last("placed").worker.worker_id == "w1"

    def test_a_new_leader_that_finds_it_taken_over_goes_by_that(self, make_stage):
        stage = make_stage(epoch=9)
        source = stage.worker("w1", capabilities=MOVES, snapshot=False)
        source.snapshot(stage.status("q", (7, 1), "EXPORTED"))
        target = stage.worker("w2", capabilities=MOVES, snapshot=False)
        target.snapshot(stage.status("q", (7, 2), "DECODE"))
        router = stage.router()
        router.submit("q", resume=True, last_attempt=Attempt(7, 1).proto(), committed_tokens=3)
        assert router.last("placed").worker.worker_id == "w2"
        assert [Attempt.of(cancel.attempt) for cancel in source.all("cancel")] == [Attempt(7, 1)]


class TestOperator:
    @pytest.mark.parametrize(
        ("change", "outcome", "says"),
        [
            ({"request_id": "x"}, Outcome.NOT_FOUND, "unknown"),
            ({"to": "w9"}, Outcome.NOT_FOUND, "w9"),
            ({"to": "w1"}, Outcome.IMPOSSIBLE, "runs there already"),
        ],
    )
    def test_what_cannot_be_is_said(self, scene, change, outcome, says):
        result = scene.migrate(**change)
        assert result.outcome is outcome and says in result.message

    def test_one_move_at_a_time(self, scene):
        scene.begin()
        result = scene.migrate("2")
        assert result.outcome is Outcome.IMPOSSIBLE and "moving to w2" in result.message

    def test_engines_whose_caches_do_not_move(self, scene):
        scene.stage.worker("w3")
        result = scene.migrate(to="w3")
        assert result.outcome is Outcome.IMPOSSIBLE and "do not move" in result.message

    def test_what_has_not_begun_is_not_moved(self, stage):
        router = stage.router()
        stage.worker("w1", capabilities=MOVES)
        router.submit("q")
        stage.worker("w2", capabilities=MOVES)
        result = stage.apply(action_id="1", migrate=ss.MigrateRequest(request_id="q", target_worker_id="w2"))
        assert result.outcome is Outcome.IMPOSSIBLE and "does not run" in result.message
