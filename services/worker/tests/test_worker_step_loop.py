"""The step loop at work with planner, blocks and prefix cache; random histories are test_worker_planner's."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_common.attempt import Attempt
from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import SEEDS
from hyperflexis_worker.modelled import ModelledExecutor, ModelledPool, reference_tokens
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.sequence import Sampling, Sequence
from hyperflexis_worker.steps.step_loop import StepLoop

VOCAB = 1_000


def sequence(
    name: str, prompt: list[int], max_tokens: int, committed: list[int] | None = None, arrival_us: int = 0
) -> Sequence:
    return Sequence(
        request_id=name,
        attempt=Attempt(1, 1),
        prompt=prompt,
        output=list(committed or []),
        sampling=Sampling(seed=7),
        max_tokens=max_tokens,
        arrival_us=arrival_us,
        committed=len(committed or []),
    )


def planner(budget: int, limit: int, order: str = "fcfs", lengths: OutputLengths | None = None) -> StepPlanner:
    return StepPlanner(ChunkedPolicy(SEEDS["test/tiny/tp1"], budget, limit, order), lengths)


def executor(pool: BlockPool) -> ModelledExecutor:
    modelled = ModelledPool(pool.total, pool.block_tokens)
    modelled.states.fill(2**63 + 1)  # what nobody has written is not nothing
    return ModelledExecutor(VOCAB, SEEDS["test/tiny/tp1"], modelled, sleep=lambda _: None)


@given(
    prompts=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=30), min_size=1, max_size=6),
    budget=st.integers(1, 40),
)
def test_tokens_do_not_depend_on_chunks_or_company(prompts: list[list[int]], budget: int) -> None:
    pool = BlockPool(200, 4)
    loop, device = StepLoop(planner(budget, 8), pool), executor(pool)
    sequences = [sequence(f"r{i}", prompt, 5, arrival_us=i) for i, prompt in enumerate(prompts)]
    for one in sequences:
        loop.add(one)
    while loop.busy:
        plan = loop.plan(0)
        loop.commit(plan, device.execute(plan.chunks))
    for one in sequences:
        assert one.output == reference_tokens(one.prompt, 7, 5, VOCAB)


@given(
    order=st.sampled_from(["fcfs", "edf"]),
    budget=st.integers(1, 24),
    limit=st.integers(1, 6),
    blocks=st.integers(15, 40),
    prefix_cache=st.booleans(),
    foreseen=st.booleans(),
    chance=st.randoms(use_true_random=False),
)
def test_a_long_one_ends_although_short_and_urgent_ones_keep_coming(
    order: str, budget: int, limit: int, blocks: int, prefix_cache: bool, foreseen: bool, chance: Random
) -> None:
    """More than can run at once, for ever, and most give up soon: its turn must come, and what was done for it must
    not be undone again and again."""
    lengths = OutputLengths()
    for _ in range(0 if foreseen else 500):
        lengths.learn("", 0)
    pool = BlockPool(blocks, 4, prefix_cache)
    loop = StepLoop(planner(budget, limit, order, lengths), pool)
    device, ended = executor(pool), False
    long = sequence("long", list(range(36)), 18, arrival_us=30)
    long.ttft_us = 50
    for step in range(1_000):
        if step == 30:
            loop.add(long)
        for one in [s for s in loop.waiting if s is not long and s.arrival_us < step - 2]:
            loop.cancel(one.request_id)
        for number in range(limit):
            prompt = [chance.randrange(9)] * chance.randint(1, 9)
            short = sequence(f"{step}-{number}", prompt, chance.randint(1, 9), arrival_us=step)
            short.ttft_us = 1
            loop.add(short)
        plan = loop.plan(step)
        result = loop.commit(plan, device.execute(plan.chunks))
        ended = long in [end.sequence for end in result.ended]
        if ended:
            break
    assert ended, f"{long.computed} computed, {len(long.output)} made"


def test_a_stop_token_ends_a_sequence_but_not_before_min_tokens() -> None:
    prompt = [1, 2, 3]
    tokens = reference_tokens(prompt, 7, 10, VOCAB)
    for min_tokens, expected in ((0, 3), (5, 10)):
        one = sequence("r", prompt, 10)
        one.sampling = Sampling(seed=7, stop_token_ids=frozenset({tokens[2]}), min_tokens=min_tokens)
        pool = BlockPool(50, 4)
        loop, device = StepLoop(planner(16, 8), pool), executor(pool)
        loop.add(one)
        while loop.busy:
            plan = loop.plan(0)
            loop.commit(plan, device.execute(plan.chunks))
        assert len(one.output) == expected


def test_a_spliced_token_breaks_all_later_ones() -> None:
    prompt = [5, 6]
    reference = reference_tokens(prompt, 7, 8, VOCAB)
    wrong = [*reference[:3], (reference[3] + 1) % VOCAB]
    one = sequence("r", prompt, 8, wrong)
    pool = BlockPool(50, 4)
    loop, device = StepLoop(planner(16, 8), pool), executor(pool)
    loop.add(one)
    while loop.busy:
        plan = loop.plan(0)
        loop.commit(plan, device.execute(plan.chunks))
    assert all(a != b for a, b in zip(one.output[3:], reference[3:], strict=True))


def test_a_prefix_is_computed_once_and_its_last_token_always() -> None:
    pool = BlockPool(20, 4)
    loop, device = StepLoop(planner(64, 8), pool), executor(pool)

    def run(name: str, prompt: list[int]) -> Sequence:
        one = sequence(name, prompt, 1)
        loop.add(one)
        while loop.busy:
            plan = loop.plan(0)
            computed[name] = computed.get(name, 0) + sum(chunk.length for chunk in plan.chunks)
            loop.commit(plan, device.execute(plan.chunks))
        return one

    computed: dict[str, int] = {}
    prompt = list(range(12))
    assert run("first", prompt).cached_tokens == 0
    assert run("same", prompt).cached_tokens == 8 and computed["same"] == 4
    assert run("longer", [*prompt, 50, 51]).cached_tokens == 12 and computed["longer"] == 2
    assert run("other", [99, *prompt[1:]]).cached_tokens == 0


@pytest.mark.parametrize("evicted", [False, True])
def test_what_the_cache_has_is_no_work_to_come(evicted: bool) -> None:
    """While it waits: what it is given up for, and what dispatchers hear of. It may be gone when its turn comes."""
    pool = BlockPool(8, 4)
    loop, device = StepLoop(planner(64, 8), pool), executor(pool)
    prompt = list(range(12))

    def run() -> None:
        while loop.busy:
            plan = loop.plan(0)
            loop.commit(plan, device.execute(plan.chunks))

    loop.add(sequence("first", prompt, 1))
    run()
    again = sequence("again", prompt, 3)
    loop.add(again)
    assert (again.to_compute, again.computed, again.decoding) == (4, 0, False)
    if evicted:
        other = pool.allocate(pool.free)
        assert other is not None
        pool.release(other)
    run()
    assert again.cached_tokens == (0 if evicted else 8)
    assert again.output == reference_tokens(prompt, 7, 3, VOCAB)


def test_two_that_run_share_the_blocks_of_their_prefix() -> None:
    pool = BlockPool(10, 4)
    loop, device = StepLoop(planner(64, 8), pool), executor(pool)
    for name in ("a", "b"):
        loop.add(sequence(name, list(range(9)), 3))
        plan = loop.plan(0)
        loop.commit(plan, device.execute(plan.chunks))
    a, b = loop.running
    assert a.blocks[:2] == b.blocks[:2] and a.blocks[2] != b.blocks[2]
    assert pool.usable - pool.free == 4
    loop.cancel("a")
    loop.check_integrity()
    assert pool.usable - pool.free == 3


def test_admission_leaves_room_for_what_runs_to_grow() -> None:
    pool, lengths = BlockPool(11, 4), OutputLengths()
    for _ in range(200):
        lengths.learn("", 20)
    loop = StepLoop(planner(64, 8, lengths=lengths), pool, lengths)
    for name in ("a", "b"):
        loop.add(sequence(name, [1, 2, 3, 4], 20))
    device = executor(pool)
    plan = loop.plan(0)
    assert [chunk.sequence.request_id for chunk in plan.chunks] == ["a"]  # 6 blocks each, 10 there
    loop.commit(plan, device.execute(plan.chunks))
    preempted = 0
    while loop.busy:
        plan = loop.plan(0)
        preempted += len(plan.preempted)
        loop.commit(plan, device.execute(plan.chunks))
    assert preempted == 0


@pytest.mark.parametrize(
    ("company", "shared", "yielded"),
    [
        ("b", 3, ["b"]),  # its own block is enough for a
        ("b", 4, ["b", "a"]),  # all of its blocks are a's too, which finds no room then
        ("cd", 0, ["d", "c"]),  # theirs are free only when both have yielded
    ],
)
def test_preempting_frees_what_nobody_else_owns(company: str, shared: int, yielded: list[str]) -> None:
    """All of them decode and need a block more; `shared`: blocks of a that the company has as well."""
    pool = BlockPool(9, 1)
    a, *others = decoding = [sequence(name, [0] * 4, 9, committed=[7], arrival_us=ord(name)) for name in "a" + company]
    a.blocks = pool.allocate(4) or []
    common = [*a.blocks[:shared], *(pool.allocate(4 - shared) or [])]
    pool.share(a.blocks[:shared])
    for other in others:
        other.blocks = list(common)
    pool.share(common * (len(others) - 1))
    for number, one in enumerate(decoding):
        one.number, one.computed = number, 4
    assert pool.allocate(pool.free) is not None  # somebody else's
    plan = planner(8, 8).plan(decoding, [], pool, 0)
    assert [one.request_id for one in plan.preempted] == yielded
    for one in plan.preempted:
        pool.release(one.blocks)
    assert [chunk.sequence for chunk in plan.chunks] == [one for one in decoding if one not in plan.preempted]
    assert len(plan.chunks) <= pool.free


def test_a_step_says_whose_blocks_it_took() -> None:
    surprised = OutputLengths()
    for _ in range(100):
        surprised.learn("", 1)
    pool = BlockPool(9, 4, prefix_cache=False)
    loop = StepLoop(planner(100, 8, lengths=surprised), pool, surprised)
    for index, name in enumerate("ab"):
        loop.add(sequence(name, [index + 1] * 8, max_tokens=12, arrival_us=index))
    device, preempted = executor(pool), []
    while loop.busy:
        plan = loop.plan(0)
        result = loop.commit(plan, device.execute(plan.chunks))
        preempted += [(s.request_id, s.num_tokens) for s in result.preempted]
    assert preempted and all(name == "b" and tokens > 8 for name, tokens in preempted)


def test_what_is_attached_with_nothing_computed_waits_as_any_other() -> None:
    """Who runs has begun: planners put those first, and would let blocks without work block the rest."""
    pool = BlockPool(9, 4)
    loop, device = StepLoop(planner(64, 8), pool), executor(pool)
    one, blocks = sequence("r", list(range(9)), 3), pool.allocate(8)
    assert blocks is not None
    with pytest.raises(ValueError, match="one at least must be left"):
        loop.attach(one, blocks, 9)
    with pytest.raises(ValueError, match="do not fit in 1 blocks"):
        loop.attach(one, blocks[:1], 5)
    assert pool.free == 0
    loop.attach(one, blocks, 0)
    assert pool.free == pool.usable and list(loop.waiting) == [one]
    while loop.busy:
        plan = loop.plan(0)
        loop.commit(plan, device.execute(plan.chunks))
    assert one.output == reference_tokens(one.prompt, 7, 3, VOCAB)
