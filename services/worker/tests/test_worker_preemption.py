"""What a request keeps of its promise when it loses its blocks, and what the planner remembers from step to step."""

from __future__ import annotations

from hyperflexis_common.attempt import Attempt
from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.sampled import Sampled
from hyperflexis_worker.steps.scorpio_policy import ScorpioPolicy
from hyperflexis_worker.steps.sequence import Sampling, Sequence
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.step_loop import StepLoop
from hyperflexis_worker.steps.step_plan import StepPlan

MODEL = StepTimeModel(1_000.0, 10.0, 10.0, 0.0, 0.0, host_us=0.0)
STEP_US = 10_000
SECOND_US = 1_000_000


class Engine:
    """Steps of 10 ms, whatever is in them; answers always turn out longer than was expected."""

    def __init__(self, blocks: int, max_tokens: int, scorpio: bool = False) -> None:
        lengths = OutputLengths()
        for _ in range(3_000):
            lengths.learn("", 0)
        policy = (ScorpioPolicy if scorpio else SloPolicy)(MODEL, max_tokens, 64, lengths)
        self.planner = StepPlanner(policy, lengths)
        self.loop = StepLoop(self.planner, BlockPool(blocks, 16, prefix_cache=False))
        self.now_us = 0

    def add(self, name: str, prompt: int, output: int, tpot_us: int, ttft_us: int = 10 * SECOND_US) -> Sequence:
        one = Sequence(
            name, Attempt(1, 1), [1] * prompt, [], Sampling(), output, self.now_us, ttft_us=ttft_us, tpot_us=tpot_us
        )
        self.loop.add(one)
        return one

    def step(self) -> StepPlan:
        plan = self.loop.plan(self.now_us)
        self.planner.stepped(plan, STEP_US, STEP_US, MODEL)
        self.loop.commit(plan, Sampled([5 for chunk in plan.chunks if chunk.samples]))
        self.now_us += STEP_US
        return plan


def test_the_clock_of_its_tpot_goes_on() -> None:
    """What it was early by before is still its own, and so is what it was late by."""
    engine = Engine(blocks=16, max_tokens=512)
    engine.add("old", 32, 180, tpot_us=50_000)
    young = engine.add("young", 32, 180, tpot_us=50_000)
    preempted = False
    first_us = 0
    while not (preempted and young.decoding):
        plan = engine.step()
        first_us = first_us or (engine.now_us if young.made else 0)
        preempted |= young in plan.preempted
        assert engine.now_us < 10 * SECOND_US
    engine.loop.plan(engine.now_us)
    assert young.next_due_us == first_us + young.made * 50_000


def test_a_prompt_of_which_one_token_is_left_is_still_a_prompt() -> None:
    """Its deadline is that of its first token."""
    engine = Engine(blocks=32, max_tokens=64)
    engine.add("old", 46, 100, tpot_us=500_000)
    engine.step()
    new = engine.add("new", 127, 20, tpot_us=5_000, ttft_us=15 * SECOND_US)
    while new.computed < 126:
        engine.step()
    assert (new.made, new.decoding, new.due_us) == (0, False, 15 * SECOND_US + new.arrival_us)
    engine.step()
    assert new.made == 1


def test_scorpio_lets_a_loose_decode_skip_the_steps_that_it_need_not_be_in() -> None:
    """Beside one of 50 ms, one of 100 ms is in every second step: credit that is used up exactly is used up."""
    engine = Engine(blocks=64, max_tokens=512, scorpio=True)
    engine.add("tight", 16, 300, tpot_us=50_000)
    loose = engine.add("loose", 16, 300, tpot_us=100_000)
    for _ in range(101):
        engine.step()
    assert 48 <= loose.made <= 53
