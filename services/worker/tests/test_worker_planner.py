"""The step policies at work on real sequences and blocks: property tests over random histories and tight pools."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hyperflexis_common.attempt import Attempt
from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import SEEDS, StepTimeModel
from hyperflexis_worker.modelled import ModelledExecutor, ModelledPool, reference_tokens
from hyperflexis_worker.steps.admission_policy import AdmissionPolicy
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.scorpio_policy import ScorpioPolicy
from hyperflexis_worker.steps.sequence import Sampling, Sequence
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.step_loop import StepLoop
from hyperflexis_worker.steps.step_plan import Chunk
from hyperflexis_worker.steps.step_policy import StepPolicy

VOCAB = 1_000
MODEL = SEEDS["test/tiny/tp1"]
HOUR_US = 3_600_000_000


def policy(kind: str, budget: int, limit: int, lengths: OutputLengths) -> StepPolicy:
    if kind == "slo":
        return SloPolicy(MODEL, budget, limit, lengths)
    if kind == "admission":
        return AdmissionPolicy(MODEL, budget, limit, lengths)
    if kind == "scorpio":
        return ScorpioPolicy(MODEL, budget, limit, lengths)
    return ChunkedPolicy(MODEL, budget, limit, kind)


def sequence(
    name: str,
    prompt: list[int],
    max_tokens: int,
    now_us: int,
    ttft_us: int,
    tpot_us: int = 50_000,
    committed: list[int] | None = None,
) -> Sequence:
    return Sequence(
        request_id=name,
        attempt=Attempt(1, 1),
        prompt=prompt,
        output=list(committed or []),
        committed=len(committed or []),
        sampling=Sampling(seed=7),
        max_tokens=max_tokens,
        arrival_us=now_us,
        ttft_us=ttft_us,
        tpot_us=tpot_us,
    )


def modelled(pool: BlockPool) -> ModelledExecutor:
    return ModelledExecutor(VOCAB, MODEL, ModelledPool(pool.total, pool.block_tokens), sleep=lambda _: None)


class Engine(RuleBasedStateMachine):
    """Random arrivals, cancellations and steps, a clock that moves, and pools that are often too small."""

    @initialize(
        blocks=st.integers(3, 14),
        block_tokens=st.integers(1, 5),
        budget=st.integers(1, 40),
        limit=st.integers(1, 5),
        kind=st.sampled_from(["slo", "slo", "slo", "admission", "admission", "scorpio", "fcfs", "edf", "srpf"]),
        prefix_cache=st.booleans(),
        foreseen=st.booleans(),
    )
    def begin(
        self, blocks: int, block_tokens: int, budget: int, limit: int, kind: str, prefix_cache: bool, foreseen: bool
    ) -> None:
        self.pool = BlockPool(blocks, block_tokens, prefix_cache)
        self.budget, self.limit = budget, limit
        lengths = OutputLengths()
        for _ in range(0 if foreseen else 2_000):
            lengths.learn("", 0)  # growth is a surprise: sequences are preempted
        self.planner = StepPlanner(policy(kind, budget, limit, lengths), lengths)
        self.loop = StepLoop(self.planner, self.pool)
        self.executor = modelled(self.pool)
        self.live: dict[str, Sequence] = {}
        self.names = 0
        self.now_us = 0
        self.idle_steps = 0

    @rule(
        prompt=st.builds(
            lambda same, own: [0] * same + own, st.integers(1, 12), st.lists(st.integers(0, 1), max_size=3)
        ),
        more=st.integers(1, 12),
        ttft_us=st.sampled_from([500, 20_000, 10**7]),
        tpot_us=st.sampled_from([400, 5_000, 10**6]),
        committed=st.integers(0, 3),
    )
    def add(self, prompt: list[int], more: int, ttft_us: int, tpot_us: int, committed: int) -> None:
        self.names += 1
        known = reference_tokens(prompt, 7, committed, VOCAB)
        one = sequence(f"r{self.names}", prompt, committed + more, self.now_us, ttft_us, tpot_us, known)
        if self.loop.fits(one):
            self.loop.add(one)
            self.live[one.request_id] = one
        else:
            with pytest.raises(ValueError, match="exceed the KV pool"):
                self.loop.add(one)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.loop.cancel(name)
        del self.live[name]

    @precondition(lambda self: self.live)
    @rule(took_us=st.sampled_from([100, 2_000, 300_000]))
    def step(self, took_us: int) -> None:
        plan = self.loop.plan(self.now_us)
        assert plan.chunks or plan.given_up, "work waits, and nothing is done"
        decodes = sum(chunk.length == 1 and chunk.samples for chunk in plan.chunks)
        prefill = sum(chunk.length for chunk in plan.chunks) - decodes
        assert prefill <= self.budget
        names = [chunk.sequence.request_id for chunk in plan.chunks]
        assert len(names) == len(set(names))
        sampled = self.executor.execute(plan.chunks)
        self.now_us += took_us
        self.planner.stepped(plan, MODEL.predict_us(plan.shape), took_us, MODEL)
        made = sum(len(s.output) + s.computed for s in self.live.values())
        result = self.loop.commit(plan, sampled)
        for one, decision in plan.given_up:
            assert decision.reason and decision.numbers and not one.made
            del self.live[one.request_id]
        for end in result.ended:
            want = reference_tokens(end.sequence.prompt, 7, end.sequence.max_tokens, VOCAB)
            assert end.sequence.output == want
            del self.live[end.sequence.request_id]
        got_on = result.tokens or plan.given_up or sum(len(s.output) + s.computed for s in self.live.values()) > made
        self.idle_steps = 0 if got_on else self.idle_steps + 1
        assert self.idle_steps < 3, "steps that get nobody anywhere"

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "loop"):
            return
        self.loop.check_integrity()
        running, waiting = list(self.loop.running), list(self.loop.waiting)
        queued = self.planner.queued(running, waiting, self.now_us)
        assert queued.tokens == sum(s.to_compute for s in (*running, *waiting) if not s.decoding)

    def teardown(self) -> None:
        """Whatever is left ends, in a bounded number of steps."""
        if not hasattr(self, "loop"):
            return
        for _ in range(3_000):
            if not self.live:
                break
            self.step(1_000)
        assert not self.live, "somebody starves"
        assert self.pool.free == self.pool.usable


TestEngine = Engine.TestCase
TestEngine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_prompt_that_yields_its_blocks_is_told_of_whole() -> None:
    """Two that began hold the pool between them, and neither can go on."""
    pool = BlockPool(9, 1, prefix_cache=False)
    planner = StepPlanner(ChunkedPolicy(MODEL, 8, 4))
    loop = StepLoop(planner, pool)
    for name, ttft_us in (("older", 1_000), ("later", 2_000)):
        blocks = pool.allocate(4)
        assert blocks is not None
        loop.attach(sequence(name, [1, 2, 3, 4, 5, 6], 1, 0, ttft_us), blocks, 4)
    plan = loop.plan(0)
    assert [one.request_id for one in plan.preempted] == ["later"]
    assert planner.queued(list(loop.running), list(loop.waiting), 0).tokens == 2 + 6


def served(
    loop: StepLoop, planner: StepPlanner, model: StepTimeModel, now_us: int, device: ModelledExecutor
) -> list[tuple[int, list[str]]]:
    """(end of step, who got a token) until nothing is left; steps take what the model says."""
    log = []
    while loop.busy:
        plan = loop.plan(now_us)
        took_us = int(model.predict_us(plan.shape))
        sampled = device.execute(plan.chunks)
        planner.stepped(plan, took_us, took_us, model)
        now_us += took_us
        log.append((now_us, [s.request_id for s, _, _ in loop.commit(plan, sampled).tokens]))
    return log


def test_decodes_keep_their_tpot_while_a_long_prompt_is_prefilled() -> None:
    """A 100k-token prompt beside a decode of 30 ms: chunks are cut so that no token is late; FCFS pauses it."""
    model = SEEDS["h200/llama-3.1-8b/tp1"]
    gaps = {}
    for kind in ("slo", "fcfs"):
        lengths = OutputLengths()
        made = SloPolicy(model, 8_192, 64, lengths) if kind == "slo" else ChunkedPolicy(model, 8_192, 64)
        planner = StepPlanner(made, lengths)
        pool = BlockPool(4_000, 64)
        loop = StepLoop(planner, pool)
        loop.add(sequence("tight", [1] * 100, 60, 0, 500_000, 30_000))
        device = modelled(pool)
        plan = loop.plan(0)
        loop.commit(plan, device.execute(plan.chunks))
        loop.add(sequence("long", [2] * 100_000, 2, 0, 60_000_000, 200_000))
        log = served(loop, planner, model, 0, device)
        times = [at for at, who in log if "tight" in who]
        gaps[kind] = (times[-1] - times[0]) / (len(times) - 1)
    assert gaps["slo"] <= 30_000 < gaps["fcfs"]


def test_what_cannot_be_on_time_is_given_up_with_its_numbers() -> None:
    lengths = OutputLengths()
    planner = StepPlanner(SloPolicy(SEEDS["h200/llama-3.1-8b/tp1"], 8_192, 64, lengths), lengths)
    loop = StepLoop(planner, BlockPool(4_000, 64))
    loop.add(sequence("hopeless", [1] * 50_000, 4, 0, 500_000))
    loop.add(sequence("fine", [1] * 500, 4, 0, 500_000))
    plan = loop.plan(0)
    [(given_up, decision)] = plan.given_up
    assert given_up.request_id == "hopeless" and decision.reason == "hopeless"
    assert decision.numbers["predicted_ttft_us"] > 500_000
    assert [chunk.sequence.request_id for chunk in plan.chunks] == ["fine"]


@pytest.mark.parametrize("order", ["first", "last"])
def test_the_dearest_is_left_behind_when_not_all_can_be_on_time(order: str) -> None:
    """Five prompts of which the large one alone makes the others late: it goes, wherever it stands in the queue."""
    lengths = OutputLengths()
    planner = StepPlanner(SloPolicy(SEEDS["h200/llama-3.1-8b/tp1"], 8_192, 64, lengths), lengths)
    loop = StepLoop(planner, BlockPool(8_000, 64, prefix_cache=False))
    large = sequence("large", [1] * 20_000, 4, 0, 700_000 if order == "last" else 690_000)
    small = [sequence(f"small{i}", [i] * 1_500, 4, 0, 695_000) for i in range(8)]
    for one in [large, *small] if order == "first" else [*small, large]:
        loop.add(one)
    plan = loop.plan(100_000)
    assert [one.request_id for one, _ in plan.given_up] == ["large"]
    assert plan.given_up[0][1].reason == "left_behind"


@given(st.lists(st.tuples(st.integers(1, 2_000), st.integers(1, 60)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=60)
def test_every_attempt_ends_in_tokens_or_a_reason(requests: list[tuple[int, int]]) -> None:
    model, lengths = SEEDS["h200/llama-3.1-8b/tp1"], OutputLengths()
    planner = StepPlanner(SloPolicy(model, 2_048, 16, lengths), lengths)
    pool = BlockPool(200, 16)
    loop = StepLoop(planner, pool)
    for number, (prompt, output) in enumerate(requests):
        loop.add(sequence(f"r{number}", [number] * prompt, output, 0, 1_500_000))
    served(loop, planner, model, 0, modelled(pool))
    assert not loop.busy


def test_one_that_was_attached_with_more_blocks_than_it_needs_yet_lends_them_to_nobody() -> None:
    pool, lengths = BlockPool(12, 2), OutputLengths()
    planner = StepPlanner(ChunkedPolicy(MODEL, 64, 8), lengths)
    loop, device = StepLoop(planner, pool, lengths), modelled(pool)
    for _ in range(2_000):
        lengths.learn("", 0)
    blocks = pool.allocate(8)
    assert blocks is not None
    attached = sequence("attached", [1] * 8, 4, 0, 10**9)
    device.execute([Chunk(sequence_in(blocks, attached), 0, 4)])
    loop.attach(attached, blocks, 4)
    loop.add(sequence("other", [2] * 10, 2, 1, 10**9))  # five blocks, three are free
    plan = loop.plan(0)
    assert [chunk.sequence.request_id for chunk in plan.chunks] == ["attached"]
    loop.commit(plan, device.execute(plan.chunks))
    served(loop, planner, MODEL, 1, device)
    assert attached.output == reference_tokens(attached.prompt, 7, 4, VOCAB) and pool.free == pool.usable


def sequence_in(blocks: list[int], like: Sequence) -> Sequence:
    copy = sequence("elsewhere", like.prompt, like.max_tokens, 0, like.ttft_us)
    copy.blocks = blocks
    return copy
