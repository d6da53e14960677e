"""What becomes of a request that its worker has given up: a second try, then what its tier says."""

from __future__ import annotations

import pytest

from hyperflexis.common.v1 import slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis_scheduler.core.dispatch_policy import RoundRobin
from hyperflexis_scheduler.core.request import BEST_EFFORT_TTFT_US
from hyperflexis_scheduler.core.rules import Rules


def give_up(stage, slo, workers=2):
    """Every worker gives the request up once."""
    for number in range(workers):
        stage.worker(f"w{number}")
    router = stage.router()
    router.submit("q", slo=slo)
    seen = []
    for _ in range(workers):
        worker = holder(stage, router)
        seen.append(worker.key.worker_id)
        decision = slo_pb2.Decision(numbers={"predicted_ttft_us": 5_000_000})
        worker.update("gave_up", worker.last("run"), decision=decision)
    assert len(set(seen)) == workers
    return router


def holder(stage, router):
    name = router.last("placed").worker.worker_id
    return next(peer for peer in stage.peers.values() if getattr(peer, "key", None) and peer.key.worker_id == name)


def test_another_worker_tries_once_then_the_tier_refuses_with_numbers(stage):
    router = give_up(stage, stage.slo(on_violation=slo_pb2.ON_VIOLATION_REFUSE))
    refused = router.last("refused")
    assert refused.reason == rs.REFUSAL_REASON_SLO and refused.predicted_ttft_us == 5_000_000
    assert refused.retry_after_us == 4_000_000 and len(router.all("placed")) == 2
    assert not router.all("lost")


def test_what_came_of_a_decision_is_noted_once(stage):
    worker, router = stage.worker("w0"), stage.router()
    router.submit("q")
    run = worker.last("run")
    for kind in ("started", "started", "first_token", "started", "first_token"):
        worker.update(kind, run)
    assert [kind for kind, _ in stage.kinds("q")] == ["place", "begin", "first_token"]
    router.submit("q", resume=True)
    assert router.last("placed").decision.kind == "place"


def test_why_a_worker_gave_up_is_kept(stage):
    worker, router = stage.worker("w0"), stage.router()
    router.submit("q", slo=stage.slo(on_violation=slo_pb2.ON_VIOLATION_REFUSE))
    decision = slo_pb2.Decision(reason="left_behind", numbers={"predicted_ttft_us": 5_000_000})
    worker.update("gave_up", worker.last("run"), decision=decision)
    assert stage.kinds("q")[1:] == [("gave_up", "left_behind"), ("refuse", "slo")]
    assert "predicted after 5,000 ms, promised are 1,000" in router.last("refused").message


def test_a_downgrade_is_told_and_placed_under_the_new_promise(make_stage):
    batch = make_stage.slo("batch", 60_000)
    stage = make_stage(Rules(tiers={"batch": batch}))
    slo = stage.slo(on_violation=slo_pb2.ON_VIOLATION_DOWNGRADE, downgrade_tier="batch")
    router = give_up(stage, slo)
    assert router.last("downgraded").slo == batch
    assert holder(stage, router).last("run").slo == batch
    router.submit("q", slo=slo, resume=True)
    assert not router.all("refused")


def test_tiers_that_fall_to_each_other_end_in_best_effort(make_stage):
    one = make_stage.slo("one", on_violation=3, downgrade_tier="two")
    two = make_stage.slo("two", on_violation=3, downgrade_tier="one")
    stage = make_stage(Rules(tiers={"one": one, "two": two}))
    router = give_up(stage, one, workers=1)
    for _ in range(2):
        worker = holder(stage, router)
        worker.update("gave_up", worker.last("run"))
    assert len(router.all("downgraded")) == 1
    assert router.last("placed").decision.reason == "best_effort"


def test_a_worker_that_could_not_be_in_time_either_is_not_tried(stage):
    """1 s is promised; its queue alone takes as long."""
    first, second, router = stage.worker("w1"), stage.worker("w2"), stage.router()
    second.report(load={"queued_prefill_us": 1_000_000})
    router.submit("q", slo=stage.slo(on_violation=slo_pb2.ON_VIOLATION_REFUSE))
    first.update("gave_up", first.last("run"))
    assert router.last("refused").reason == rs.REFUSAL_REASON_SLO
    assert not second.all("run")


def test_the_second_try_goes_to_one_in_time(make_stage):
    """Whatever the policy would rather take."""
    stage = make_stage(policy=RoundRobin())
    workers, router = [stage.worker(f"w{number}") for number in range(3)], stage.router()
    workers[1].report(load={"queued_prefill_us": 500_000, "prefill_share": 0.5})
    router.submit("q")
    workers[0].update("gave_up", workers[0].last("run"))
    assert router.last("placed").decision.reason == "second_try"
    assert workers[2].last("run").request_id == "q" and not workers[1].all("run")


def test_best_effort_goes_on_behind_everything_that_still_has_a_promise(stage):
    router = give_up(stage, stage.slo(), workers=1)
    assert router.last("placed").decision.reason == "best_effort"
    [told] = router.all("best_effort")
    assert told.slo == stage.slo() and told.decision.numbers["predicted_ttft_us"] == 5_000_000
    assert stage.kinds("q")[-2:] == [("best_effort", "chat"), ("place", "best_effort")]
    slo = holder(stage, router).last("run").slo
    assert (slo.ttft_us, slo.tpot_us) == (BEST_EFFORT_TTFT_US, 1_000_000)
    assert slo.ttft_us >= 24 * 3_600_000_000, "not given up for its age"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e30])
def test_a_forecast_that_is_no_number_is_left_out(stage, number):
    worker, router = stage.worker("w0"), stage.router()
    router.submit("q", slo=stage.slo(on_violation=slo_pb2.ON_VIOLATION_REFUSE))
    decision = slo_pb2.Decision(reason="left_behind", numbers={"predicted_ttft_us": number, "waiting": 3.0})
    worker.update("gave_up", worker.last("run"), decision=decision)
    refused = router.last("refused")
    assert (refused.reason, refused.predicted_ttft_us) == (rs.REFUSAL_REASON_SLO, 0)
    assert dict(refused.decision.numbers) == {"waiting": 3.0}


def test_best_effort_is_told_once(stage):
    router = give_up(stage, stage.slo(), workers=1)
    worker = holder(stage, router)
    worker.update("gave_up", worker.last("run"))
    assert len(router.all("best_effort")) == 1
    assert router.last("placed").decision.reason == "best_effort"


def test_best_effort_tightens_no_promise(stage):
    slo = stage.slo()
    slo.tpot_us = 2_000_000
    router = give_up(stage, slo, workers=1)
    assert holder(stage, router).last("run").slo.tpot_us == 2_000_000
