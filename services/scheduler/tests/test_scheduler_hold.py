"""Held requests of one model that need workers of different sizes."""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis_scheduler.core.rules import Rules

LOADING, READY = capability_pb2.READINESS_LOADING, capability_pb2.READINESS_READY


def loading(stage, worker_id, context_length):
    worker = stage.worker(worker_id, context_length=context_length, readiness=LOADING, snapshot=False)
    return worker.snapshot(readiness=LOADING)


def queue(stage, large, small):
    """Two workers that are not ready; first come the requests that only the large one can hold."""
    big, little, router = loading(stage, "big", 10_000), loading(stage, "little", 200), stage.router()
    for number in range(large):
        router.submit(f"large{number}", prompt_tokens=5_000)
    for number in range(small):
        router.submit(f"small{number}")
    return big, little, router


def names(worker):
    return [run.request_id for run in worker.all("run")]


def test_what_does_not_fit_yet_holds_up_nothing_behind_it(stage):
    big, little, _ = queue(stage, large=300, small=3)
    little.report(readiness=READY)
    assert names(little) == ["small0", "small1", "small2"]
    big.report(readiness=READY)
    stage.tick(200, big, little)
    assert len(names(big)) == 300


def test_a_long_queue_is_placed_in_bursts_and_in_order(make_stage):
    stage = make_stage(Rules(hold_burst=4))
    _, little, router = queue(stage, large=2, small=10)
    little.report(readiness=READY)
    assert len(names(little)) == 4
    stage.tick(100, little, router)
    stage.tick(100, little, router)
    assert names(little) == [f"small{number}" for number in range(10)]


def test_messages_that_make_no_room_look_at_nothing_that_waits(stage, monkeypatch):
    _, little, router = queue(stage, large=10, small=1)
    little.report(readiness=READY)
    hold = stage.core.cell.hold
    monkeypatch.setattr(hold, "all", None)
    little.report()
    stage.tick(500, little, router)
    assert len(hold) == 10


def test_a_request_that_no_worker_is_large_enough_for_any_more_is_refused(stage):
    big, little, router = queue(stage, large=2, small=1)
    little.report(readiness=READY)
    assert not router.all("refused")
    big.disconnect()
    stage.tick(600, little, router)
    assert [r.reason for r in router.all("refused")] == [rs.REFUSAL_REASON_UNSERVABLE] * 2


def test_a_worker_that_comes_back_larger_takes_what_waits(stage):
    _, little, router = queue(stage, large=1, small=0)
    little.report(readiness=READY)
    little.disconnect()
    larger = stage.worker("little", context_length=6_000)
    assert names(larger) == ["large0"] and router.last("placed").request_id == "large0"


def test_models_do_not_wait_for_each_other(stage):
    loading(stage, "w1", 10_000)
    router = stage.router()
    for number in range(300):
        router.submit(f"m{number}")
    router.submit("n", model="n")
    other = stage.worker("w2", model="n")
    assert names(other) == ["n"]
