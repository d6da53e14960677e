"""What lies between client, dispatcher and engine."""

from __future__ import annotations

import pytest

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_scheduler.core.dispatch_policy import RoundRobin
from hyperflexis_sim.cluster import Cluster
from hyperflexis_sim.delays import Delays
from hyperflexis_sim.request import FINISHED, SimRequest
from hyperflexis_sim.worker_kind import WorkerKind
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.slo_policy import SloPolicy

MODEL = StepTimeModel(1_000.0, 10.0, 10.0, 0.0, 0.0, 0.0, host_us=0.0)


def request(number: int, at_us: float, prompt: int = 100, output: int = 1) -> SimRequest:
    return SimRequest(number, at_us, "chat", "", prompt, output, 10_000.0, 50_000.0, 250_000.0, 1.0, 1_000)


def cluster(delays: Delays, workers: int = 1, **settings: bool) -> Cluster:
    kinds = [WorkerKind(MODEL, 100_000, host_us=100.0)] * workers
    return Cluster(kinds, RoundRobin(), lambda model: ChunkedPolicy(model, 128, 8), delays, step_noise=0.0, **settings)


def test_a_client_sees_its_tokens_later_than_they_are_made() -> None:
    one = request(0, 0.0, output=3)
    cluster(Delays(1_000.0, returns_us=[(4_000.0, 500.0)])).run([one], 1e9)
    # 1 ms to the engine, a prefill of 100 tokens, two decodes; 0.1 ms beside each.
    assert one.first_us == pytest.approx(1_000 + 2_100 + 4_000)
    # The last one is made before the first one is there, and cannot be seen before it.
    assert one.last_us == one.first_us
    assert one.attained
    late = request(0, 0.0)
    cluster(Delays(1_000.0, returns_us=[(8_000.0, 8_000.0)])).run([late], 1e9)
    assert late.state == FINISHED and not late.attained


def test_policies_count_with_what_passes_between_two_steps() -> None:
    kinds = [WorkerKind(MODEL, 100_000, host_us=500.0)]
    one = Cluster(kinds, RoundRobin(), lambda model: SloPolicy(model, 128, 8), Delays(0.0), step_noise=0.0)
    served = request(0, 0.0, output=300)
    one.run([served], 1e12)
    [engine] = one.engines
    policy = engine.policy
    assert isinstance(policy, SloPolicy) and served.made == 300
    # A decode is told as 1.51 ms, and takes as long: at the model's own 1.01 it would seem half as slow again.
    assert policy.model.decodes_us(1, 0) == 1_510.0 and policy.pace == pytest.approx(1.0)


def test_two_sent_close_together_may_change_places() -> None:
    delays = Delays(0.0, submits_us=[100.0, 3_000.0])
    first = set()
    for seed in range(12):
        pair = [request(0, 0.0), request(1, 50.0)]
        one = cluster(delays, workers=2)
        one.seed = seed
        one.run(pair, 1e9)
        first.add(pair[0].worker)
    assert first == {0, 1}


@pytest.mark.parametrize("rebalance", [False, True])
def test_an_idle_worker_gets_what_another_has_not_begun(rebalance: bool) -> None:
    # Round robin deals the long ones to one worker and the short ones to the other, which soon has nothing to do.
    dealt = [request(number, float(number), prompt=20_000 if number % 2 == 0 else 10) for number in range(12)]
    cluster(Delays(0.0), workers=2, rebalance=rebalance).run(dealt, 1e12)
    assert all(each.state == FINISHED for each in dealt)
    moved = [each for each in dealt if each.moves]
    assert bool(moved) == rebalance
    assert any(each.worker == 1 and each.number % 2 == 0 for each in moved) == rebalance
