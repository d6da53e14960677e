"""Which running requests move by themselves: off workers that only prefill, or that leave."""

from __future__ import annotations

import pytest

from hyperflexis.common.v1 import capability_pb2, movement_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.attempt import Attempt
from hyperflexis_scheduler.core.rules import Rules

MOVES = capability_pb2.EngineCapabilities(context_length=1_000, kv_ticket=capability_pb2.KV_TICKET_KIND_BLOCKS)
PREFILL, DECODE = capability_pb2.ROLE_PREFILL, capability_pb2.ROLE_DECODE


def kv(free=900, total=1_000):
    return capability_pb2.KvPoolStats(total_blocks=total, free_blocks=free, block_tokens=16, block_bytes=16 * 131_072)


MODEL = capability_pb2.StepTimeModel(c0_us=1_000, c2_us=100)
"""900 tokens take longer than a step may beside decodes of 50 ms: they are no short prompt."""


class Scene:
    """Workers by name, and requests that decode on them."""

    def __init__(self, stage):
        self.stage = stage
        self.router = stage.router()
        self.workers = {}

    def worker(self, name, role=capability_pb2.ROLE_MIXED, load=None):
        worker = self.stage.worker(name, role=role, capabilities=MOVES)
        worker.report(load={"kv": kv(), **(load or {})}, role=role, step_time=MODEL)
        self.workers[name] = worker
        return worker

    def decode(self, request_id, worker):
        """A request that has made its first token there; it is the only one that takes requests."""
        self.router.submit(request_id, prompt_tokens=900)
        run = worker.last("run")
        assert run.request_id == request_id
        worker.update("first_token", run, output_tokens=1, load={"kv": kv(), "running": 1})
        return run

    def moves(self, worker):
        return [attach.run.request_id for attach in worker.all("attach_kv")]

    def arrive(self, worker, **load):
        attach = worker.last("attach_kv")
        worker.update("attached", attach.run, output_tokens=3, load={"kv": kv(), "running": 1, **load})


@pytest.fixture
def scene(stage):
    return Scene(stage)


def test_what_a_prefill_worker_has_prefilled_moves_with_its_first_token(scene):
    source, target = scene.worker("p", PREFILL), scene.worker("d", DECODE)
    scene.decode("q", source)
    assert scene.moves(target) == ["q"]
    assert ("move", "role") in scene.stage.kinds("q")
    scene.arrive(target)
    assert scene.router.last("placed").worker.worker_id == "d"
    scene.stage.tick(1_000, source, target, scene.router)
    assert scene.moves(source) == [] and scene.moves(target) == ["q"], "there it stays"


def test_without_a_place_it_decodes_where_it_is_and_is_looked_at_again(scene):
    source = scene.worker("p", PREFILL)
    target = scene.worker("d", DECODE, {"kv": kv(free=0)})
    scene.decode("q", source)
    assert scene.moves(target) == [] and ("stay", "no_kv_room") in scene.stage.kinds("q")
    target.report(load={"kv": kv()}, role=DECODE)
    scene.stage.tick(200, source, target, scene.router)
    assert scene.moves(target) == ["q"]


def test_prefill_and_decode_worker_where_nobody_else_decodes(scene):
    source = scene.worker("p", PREFILL)
    scene.decode("q", source)
    scene.stage.tick(500, source, scene.router)
    assert [kind for kind, _ in scene.stage.kinds("q")] == ["place", "first_token", "stay"]


def test_what_runs_on_a_worker_that_leaves_moves_away(scene):
    source = scene.worker("a")
    runs = [scene.decode(f"q{number}", source) for number in range(3)]
    target = scene.worker("b")
    scene.stage.apply(action_id="1", worker_id="a", drain=ws.Drain())
    scene.stage.tick(200, source, target, scene.router)
    assert sorted(scene.moves(target)) == ["q0", "q1", "q2"]
    for attach, run in zip(target.all("attach_kv"), runs, strict=True):
        target.update("attached", attach.run)
        assert Attempt.of(run.attempt) in [Attempt.of(cancel.attempt) for cancel in source.all("cancel")]


def test_a_flip_to_prefill_sends_away_what_decodes_there(scene):
    source, target = scene.worker("a"), None
    scene.decode("q", source)
    target = scene.worker("b")
    scene.stage.apply(action_id="1", worker_id="a", set_role=ws.SetRole(role=PREFILL))
    source.report(role=PREFILL, load={"kv": kv(), "running": 1})
    scene.stage.tick(200, source, target, scene.router)
    assert scene.moves(target) == ["q"]


def test_quiet_workers_keep_what_they_have(scene):
    source = scene.worker("a")
    scene.decode("q", source)
    target = scene.worker("b")
    for _ in range(5):
        scene.stage.tick(500, source, target, scene.router)
    assert scene.moves(target) == []


def test_a_failed_move_is_tried_again_in_a_later_round(scene):
    source, target = scene.worker("p", PREFILL), scene.worker("d", DECODE)
    scene.decode("q", source)
    target.update("not_attached", target.last("attach_kv").run, load={"kv": kv()})
    scene.stage.tick(200, source, target, scene.router)
    assert scene.moves(target) == ["q", "q"]


class TestLinks:
    @pytest.fixture
    def scene(self, make_stage):
        """Links for the sake of prefixes are ordered elsewhere."""
        return Scene(make_stage(Rules(prefix_pulls=False)))

    def asked(self, worker):
        return [link.peer.worker_id for link in worker.all("link")]

    def up(self, worker, peer, transport="nixl"):
        ref = movement_pb2.WorkerRef(worker_id=peer.key.worker_id, incarnation=peer.key.incarnation)
        link = movement_pb2.LinkStatus(peer=ref, transport=transport, gigabytes_per_s=4.0)
        worker.report(links=[link], load={"kv": kv()}, role=DECODE)

    def test_made_before_they_are_needed_by_those_who_read(self, scene):
        source, target, other = scene.worker("p", PREFILL), scene.worker("d", DECODE), scene.worker("m")
        scene.stage.tick(200, source, target, other, scene.router)
        assert (self.asked(target), self.asked(other), self.asked(source)) == (["p"], ["p"], [])
        self.up(target, source)
        scene.stage.tick(6_000, source, target, other, scene.router)
        assert self.asked(target) == ["p"] and len(self.asked(other)) == 2, "asked again where none came"

    def test_made_anew_after_a_loss_and_with_another_life(self, scene):
        source, target = scene.worker("p", PREFILL), scene.worker("d", DECODE)
        scene.stage.tick(200, source, target, scene.router)
        self.up(target, source)
        scene.stage.tick(6_000, source, target, scene.router)
        self.up(target, source, transport="")
        scene.stage.tick(200, source, target, scene.router)
        assert self.asked(target) == ["p", "p"]
        again = scene.stage.worker("p", incarnation=2, role=PREFILL, capabilities=MOVES)
        scene.stage.tick(200, again, target, scene.router)
        assert len(self.asked(target)) == 3

    def test_none_where_everybody_does_both(self, scene):
        workers = [scene.worker(name) for name in ("a", "b")]
        scene.stage.tick(500, *workers, scene.router)
        assert not any(self.asked(worker) for worker in workers)


class TestShortPrompts:
    def test_go_straight_to_where_they_will_decode(self, scene):
        prefill, decode = scene.worker("p", PREFILL), scene.worker("d", DECODE)
        scene.router.submit("short", prompt_tokens=100)
        scene.router.submit("long", prompt_tokens=900)
        assert [run.request_id for run in decode.all("run")] == ["short"]
        assert [run.request_id for run in prefill.all("run")] == ["long"]

    def test_unless_they_would_wait_there(self, scene):
        prefill, decode = scene.worker("p", PREFILL), scene.worker("d", DECODE)
        decode.report(role=DECODE, load={"kv": kv(), "queued_prefill_tokens": 900, "queued_prefill_us": 90_000})
        scene.router.submit("short", prompt_tokens=100)
        assert [run.request_id for run in prefill.all("run")] == ["short"]


class TestAdaptiveRoles:
    def overload(self, stage):
        scene = Scene(stage)
        workers = [scene.worker(f"w{number}") for number in range(4)]
        model = capability_pb2.StepTimeModel(c0_us=20_000, c1_us=100, c2_us=100)
        for worker in workers:
            run_load = {"kv": kv(), "running": 4, "queued_prefill_tokens": 20_000, "queued_prefill_us": 2_000_000}
            worker.report(step_time=model, load=run_load)
        for number in range(8):
            scene.router.submit(f"q{number}")
        for worker in workers:
            for run in worker.all("run"):
                worker.update("first_token", run, load=run_load)
        scene.stage.tick(15_000, *workers, scene.router)
        return [worker.last("set_role").role for worker in workers if worker.all("set_role")]

    def test_some_only_prefill_while_prompts_wait(self, make_stage):
        roles = self.overload(make_stage(rules=Rules(adaptive_roles=True)))
        assert roles and set(roles) == {PREFILL} and len(roles) < 4

    def test_only_where_it_is_asked_for(self, make_stage):
        assert not self.overload(make_stage())
