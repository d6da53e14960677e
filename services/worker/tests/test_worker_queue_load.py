"""What a worker tells of its queue: how much prefill, and what of it is served before a request that is yet to come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_queue import Pool, Prompt, queue_of
from worker_rig import ready

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_common.turns import TURNS_US
from hyperflexis_worker.core.engine_event import EngineEvent
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.queue_load import queue_load
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.slo_rules import SloRules
from hyperflexis_worker.steps.step_policy import NO_DECODES

MODEL = StepTimeModel(1_000.0, 10.0, 10.0, 0.01, 0.0, host_us=0.0)

prompts = st.builds(
    Prompt,
    number=st.integers(0, 10**6),
    to_compute=st.integers(1, 3_000),
    computed=st.sampled_from([0, 64]),
    ttft_us=st.sampled_from([20_000.0, 300_000.0, 5e6, 3.6e9]),
    arrival_us=st.integers(-1_000_000, 0).map(float),
    weight=st.sampled_from([0.5, 1.0, 8.0]),
)


@given(st.lists(prompts, max_size=12, unique_by=lambda prompt: prompt.number))
def test_it_counts_each_prompt_from_its_turn_on(waiting: list[Prompt]) -> None:
    policy, queue = SloPolicy(MODEL, 8_192, 256), queue_of(*waiting)
    took = {p.number: MODEL.prefill_us(p.to_compute, p.computed) for p in waiting}
    turns = dict(zip((p.number for p in queue.requests), policy.turns_us(queue).tolist(), strict=True))
    load = queue_load(policy, queue, 0.0)
    assert load.tokens == sum(p.to_compute for p in waiting)
    assert load.prefill_us == pytest.approx(sum(took.values()), abs=1)
    expected = [sum(us for number, us in took.items() if turns[number] <= edge) for edge in TURNS_US]
    assert load.before_us == pytest.approx(expected, abs=1)


@given(st.lists(prompts, min_size=1, max_size=12, unique_by=lambda prompt: prompt.number))
def test_turns_are_the_order_in_which_it_serves_those_it_does_not_give_up(waiting: list[Prompt]) -> None:
    policy = SloPolicy(MODEL, 100_000, 1_000, rules=SloRules(give_up=False, size_weight=False, first_in_time=False))
    queue = queue_of(*waiting)
    turns = dict(zip((p.number for p in queue.requests), policy.turns_us(queue).tolist(), strict=True))
    served = [turns[chosen.request.number] for chosen in policy.choose(0.0, NO_DECODES, queue, Pool()).chunks]
    assert served == sorted(served) and served[0] == min(turns.values())


def test_a_policy_that_serves_in_another_order_says_so() -> None:
    load = queue_load(ChunkedPolicy(MODEL, 8_192, 256), queue_of(Prompt(0, 100)), 0.0)
    assert load == (100, 1_050, [])
    assert queue_load(ChunkedPolicy(MODEL, 8_192, 256), queue_of(), 0.0) == (0, 0, [])
    assert queue_load(SloPolicy(MODEL, 8_192, 256), queue_of(), 0.0) == (0, 0, [0] * 7)


def test_what_the_engine_has_not_looked_at_comes_before_everybody() -> None:
    rig = ready()
    before_us = [0, 100, 200, 300, 400, 400, 400]
    event = EngineEvent(waiting=1, queued_prefill_tokens=40, queued_prefill_us=400, queued_before_us=before_us)
    rig.take(rig.core.engine_stepped(event, rig.now_us))
    rig.run("a")
    rig.start("a")
    load = rig.core.requests.load(rig.now_us)
    added = load.queued_prefill_us - 400
    assert added == 10 * (load.queued_prefill_tokens - 40) > 0
    assert list(load.queued_before_us) == [us + added for us in before_us]
