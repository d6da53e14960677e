"""What is kept of a request for those who ask later: when, why, with which numbers, and what then happened."""

from __future__ import annotations

import pytest

from hyperflexis.common.v1 import capability_pb2, slo_pb2
from hyperflexis_scheduler.core.dispatch_policy import POLICIES
from hyperflexis_scheduler.core.effects import TpotTooShort

MS = 1_000


def test_a_decision_says_how_long_after_the_request_came(stage):
    stage.worker("w1")
    router = stage.router()
    stage.now_us += 50 * MS
    router.submit("q", age_us=8 * MS)
    stage.now_us += 30 * MS
    [place] = stage.core.explain("q", stage.now_us)
    assert (place.after_us, place.age_us) == (8 * MS, 30 * MS)


def test_what_a_worker_tells_late_is_placed_where_it_happened(stage):
    worker, router = stage.worker("w1"), stage.router()
    router.submit("q")
    run = worker.last("run")
    stage.now_us += 100 * MS
    worker.update("started", run, decision=slo_pb2.Decision(age_us=15 * MS))
    stage.now_us += 100 * MS
    end = slo_pb2.Decision(kind="finish", numbers={"preemptions": 2.0}, age_us=20 * MS)
    worker.update("finished", run, output_tokens=9, decision=end)
    _, begin, finish = stage.core.explain("q", stage.now_us)
    assert (begin.kind, begin.after_us) == ("begin", 85 * MS)
    assert (finish.kind, finish.after_us) == ("finish", 180 * MS)
    assert dict(finish.numbers) == {"output_tokens": 9.0, "preemptions": 2.0}


@pytest.mark.parametrize("policy", list(POLICIES))
def test_every_placement_tells_the_queue_and_what_it_predicts(make_stage, policy):
    stage = make_stage(policy=POLICIES[policy]())
    stage.worker("w1")
    router = stage.router()
    router.submit("first")
    router.submit("q")
    [place] = stage.core.explain("q", stage.now_us)
    numbers = place.numbers
    assert (numbers["candidates"], numbers["requests"]) == (1, 1)
    assert numbers["queued_prefill_us"] > 0 and numbers["own_prefill_us"] > 0
    assert 0 < numbers["ahead_prefill_us"] <= numbers["queued_prefill_us"]
    # What is queued takes less than what is left of a step that runs already.
    predicted_us = (numbers["queued_prefill_us"] + numbers["own_prefill_us"]) / numbers["prefill_share"]
    assert numbers["predicted_ttft_us"] == pytest.approx(place.after_us + predicted_us)


def test_a_preemption_is_noted_and_changes_nothing(stage):
    worker, router = stage.worker("w1"), stage.router()
    router.submit("q")
    run = worker.last("run")
    worker.update("started", run)
    told = len(router.got)
    preempt = slo_pb2.Decision(kind="preempt", reason="kv_blocks", numbers={"recompute_tokens": 40})
    worker.update("preempted", run, decision=preempt)
    assert stage.kinds("q")[-1] == ("preempt", "kv_blocks") and len(router.got) == told
    worker.update("finished", run, output_tokens=3)
    assert stage.kinds("q")[-1] == ("finish", "worker")


def test_work_that_was_asked_back_too_late_stays_and_says_so(stage):
    busy, router = stage.worker("w1"), stage.router()
    router.submit("a")
    router.submit("b")
    idle = stage.worker("w2")
    stage.tick(100, busy, idle, router)
    busy.update("not_revoked", busy.last("run"))
    assert stage.kinds("b")[1:] == [("revoke", "idle_worker"), ("keep", "began")]


def test_an_attempt_that_only_a_snapshot_shows_has_no_time(stage):
    worker = stage.worker("w1", snapshot=False)
    worker.snapshot(stage.status("q", (6, 1)))
    [adopt] = stage.core.explain("q", stage.now_us)
    assert adopt.kind == "adopt" and not adopt.HasField("after_us")


def test_a_tpot_that_no_step_can_keep_is_told_with_the_request_and_once_to_whoever_runs_this(stage):
    worker, router = stage.worker("w1"), stage.router()
    worker.report(step_time=capability_pb2.StepTimeModel(c0_us=5_000, c2_us=20, host_us=1_000), load={"pace": 1.5})
    instant = slo_pb2.Slo(tier="instant", ttft_us=500 * MS, tpot_us=9 * MS)
    for name in ("q", "r"):
        router.submit(name, instant)
    router.submit("kept", slo_pb2.Slo(tier="chat", ttft_us=500 * MS, tpot_us=9 * MS + 1))
    assert [effect for effect in stage.trail if isinstance(effect, TpotTooShort)] == [
        TpotTooShort("instant", "m", 9 * MS, 9_000.0)
    ]
    [place], [kept] = (stage.core.explain(name, stage.now_us) for name in ("r", "kept"))
    assert place.numbers["empty_step_us"] == 9_000 and "empty_step_us" not in kept.numbers


def test_a_tpot_that_another_worker_can_keep_is_no_fault_of_the_tier(stage):
    router = stage.router()
    for name, pace in (("slow", 2.0), ("fast", 1.0)):
        worker = stage.worker(name)
        worker.report(step_time=capability_pb2.StepTimeModel(c0_us=6_000, c2_us=20), load={"pace": pace})
    router.submit("q", slo_pb2.Slo(tier="hasty", ttft_us=500 * MS, tpot_us=9 * MS))
    assert router.last("placed").worker.worker_id == "fast"
    assert not [effect for effect in stage.trail if isinstance(effect, TpotTooShort)]
