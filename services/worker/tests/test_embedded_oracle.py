"""The engine against transformers: tokens equal, one by one, however the work was cut into steps.

In float64, where the order of summation practically never decides a token.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_models import MODELS, VOCAB, continuation, make_model, random_prompt, save

from hyperflexis_common.attempt import NO_ATTEMPT
from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import SEEDS
from hyperflexis_worker.embedded.executor import TorchExecutor
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.sequence import Sampling, Sequence
from hyperflexis_worker.steps.step_loop import StepLoop
from hyperflexis_worker.steps.step_plan import Chunk

MODEL = SEEDS["test/tiny/tp1"]
OUTPUT, LENGTHS = 12, (1, 2, 15, 16, 17, 40, 97)


@dataclass(frozen=True)
class Oracle:
    directory: Path
    prompts: list[list[int]]
    outputs: list[list[int]]


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Oracle]:
    return {name: make_oracle(tmp_path_factory.mktemp(name), name, LENGTHS) for name in MODELS}


def make_oracle(directory: Path, name: str, lengths: Rows[int]) -> Oracle:
    model = make_model(name)
    prompts = [random_prompt(length, seed) for seed, length in enumerate(lengths)]
    return Oracle(save(model, directory), prompts, [continuation(model, prompt, OUTPUT) for prompt in prompts])


def run(
    executor: TorchExecutor,
    sequences: Rows[Sequence],
    max_tokens: int = 256,
    max_sequences: int = 16,
    blocks: int = 64,
    prefix_cache: bool = True,
) -> tuple[list[list[int]], int]:
    """Outputs, and how many preemptions it took."""
    surprised = OutputLengths()  # where blocks are scarce, sequences are preempted
    for _ in range(500):
        surprised.learn("", 0)
    pool = BlockPool(blocks, executor.pool.block_tokens, prefix_cache)
    loop = StepLoop(StepPlanner(ChunkedPolicy(MODEL, max_tokens, max_sequences), surprised), pool)
    for sequence in sequences:
        loop.add(sequence)
    preempted = 0
    while loop.busy:
        plan = loop.plan(0)
        preempted += len(plan.preempted)
        loop.commit(plan, executor.execute(plan.chunks))
        loop.check_integrity()
    return [sequence.output for sequence in sequences], preempted


def sequences(prompts: Rows[list[int]], sampling: Sampling | None = None, output: int = OUTPUT) -> list[Sequence]:
    return [
        Sequence(str(i), NO_ATTEMPT, prompt, [], sampling or Sampling(), output, arrival_us=i)
        for i, prompt in enumerate(prompts)
    ]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("budget", [1, 7, 64, 256])
def test_greedy_tokens_equal_transformers(oracles: dict[str, Oracle], family: str, budget: int) -> None:
    oracle = oracles[family]
    executor = TorchExecutor(oracle.directory, num_blocks=64, dtype="float64")
    outputs, _ = run(executor, sequences(oracle.prompts), max_tokens=budget)
    assert outputs == oracle.outputs
    assert len({token for output in outputs for token in output}) > 20, "the oracle says the same thing always"


@pytest.mark.parametrize("family", ["llama-group-3", "qwen3-group-4"])
def test_preemption_changes_no_token(oracles: dict[str, Oracle], family: str) -> None:
    oracle = oracles[family]
    executor = TorchExecutor(oracle.directory, num_blocks=16, block_tokens=8, dtype="float64")
    prompts, expected = oracle.prompts[1:5] * 2, oracle.outputs[1:5] * 2
    outputs, preempted = run(executor, sequences(prompts), blocks=16)
    assert preempted > 0
    assert outputs == expected


@settings(max_examples=15, deadline=None)
@given(
    budget=st.integers(1, 64),
    together=st.integers(1, 8),
    blocks=st.integers(9, 40),
    block_tokens=st.sampled_from([16, 32]),
    order=st.permutations(range(len(LENGTHS))),
)
def test_a_draw_depends_on_seed_and_index_only(
    oracles: dict[str, Oracle], budget: int, together: int, blocks: int, block_tokens: int, order: list[int]
) -> None:
    """Whatever the batch, chunking and preemption, and on whichever worker."""
    oracle = oracles["llama-group-3"]
    rules = [Sampling(1.0 + i / 5, (1.0, 0.8)[i % 2], (0, 0, 30)[i % 3], seed=2**63 + i) for i in range(len(LENGTHS))]

    def fresh() -> list[Sequence]:
        return [Sequence(str(i), NO_ATTEMPT, oracle.prompts[i], [], rules[i], OUTPUT) for i in range(len(LENGTHS))]

    alone = TorchExecutor(oracle.directory, num_blocks=64, dtype="float64")
    expected = [run(alone, [sequence])[0][0] for sequence in fresh()]
    other = TorchExecutor(oracle.directory, num_blocks=blocks, block_tokens=block_tokens, dtype="float64")
    members = fresh()
    run(other, [members[i] for i in order], max_tokens=budget, max_sequences=together, blocks=blocks)
    assert [sequence.output for sequence in members] == expected


EVERY_OPTION = [
    Sampling(0.8, seed=1),
    Sampling(1.2, top_p=0.9, seed=2**64 - 1),
    Sampling(1.5, top_k=20, min_p=0.05, seed=3),
    Sampling(1.0, repetition_penalty=1.4, frequency_penalty=0.5, presence_penalty=0.2, seed=4),
    Sampling(0.0, frequency_penalty=1.5, logit_bias=((3, 4.0), (7, -9.0))),
    Sampling(1.0, logit_bias=((5, 3.0),), logprobs=2, seed=6),
    Sampling(1.3, seed=7, min_tokens=4, stop_token_ids=frozenset(range(0, VOCAB, 4))),
    Sampling(0.0, min_tokens=3, stop_token_ids=frozenset(range(0, VOCAB, 3))),
]


def test_every_option_draws_the_same_however_and_wherever_it_is_computed(oracles: dict[str, Oracle]) -> None:
    """Alone; in a batch, in chunks, preempted, with a cached prefix; and moved to another worker at every index."""
    oracle, output, common = oracles["qwen3-group-4"], 14, random_prompt(20, 77)
    prompts = [common + random_prompt(3 + 5 * i, i) for i in range(len(EVERY_OPTION))]

    def fresh(committed: Rows[list[int]] | None = None) -> list[Sequence]:
        known = committed or [[] for _ in prompts]
        return [
            Sequence(str(i), NO_ATTEMPT, prompts[i], list(known[i]), rules, output, i, committed=len(known[i]))
            for i, rules in enumerate(EVERY_OPTION)
        ]

    alone = TorchExecutor(oracle.directory, num_blocks=64, dtype="float64")
    expected = [run(alone, [sequence], prefix_cache=False)[0][0] for sequence in fresh()]
    assert sum(len(one) < output for one in expected) > 0, "some end at a stop token"
    preempted = hits = 0
    for budget, together, blocks, block_tokens in ((1, 8, 120, 4), (7, 3, 60, 4), (33, 8, 21, 4), (256, 8, 12, 8)):
        other = TorchExecutor(oracle.directory, blocks, block_tokens, "float64")
        members = fresh()
        preempted += run(other, members, budget, together, blocks)[1]
        hits += sum(one.cached_tokens > 0 for one in members)
        assert [one.output for one in members] == expected
    assert preempted > 0 and hits > 0
    for index in range(1, output):
        moved = [
            one for one in fresh([whole[:index] for whole in expected]) if index < len(expected[int(one.request_id)])
        ]
        run(other, moved, 19, 8, 12)
        assert [one.output for one in moved] == [expected[int(one.request_id)] for one in moved]


def test_a_resumed_request_goes_on_with_the_same_draws(oracles: dict[str, Oracle]) -> None:
    oracle = oracles["qwen2-group-4"]
    executor = TorchExecutor(oracle.directory, num_blocks=64, dtype="float64")
    rules = Sampling(1.5, 0.9, seed=11)
    (whole,), _ = run(executor, sequences([oracle.prompts[3]], rules))
    resumed = Sequence("r", NO_ATTEMPT, oracle.prompts[3], whole[:5], rules, OUTPUT, committed=5)
    run(executor, [resumed])
    assert resumed.output == whole


def test_padding_and_other_owners_leftovers_do_not_matter(oracles: dict[str, Oracle]) -> None:
    oracle = oracles["llama-group-3"]
    executor = TorchExecutor(oracle.directory, num_blocks=64, dtype="float64")
    executor.pool.tensor.fill_(float("nan"))
    outputs, _ = run(executor, sequences(oracle.prompts), max_tokens=50)
    assert outputs == oracle.outputs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_near_in_lower_precision(oracles: dict[str, Oracle], dtype: str) -> None:
    """Teacher-forced: a share of the oracle's tokens, since rounding may flip a near tie."""
    oracle = oracles["qwen3-group-4"]
    executor = TorchExecutor(oracle.directory, num_blocks=64, dtype=dtype)
    hits = total = 0
    for prompt, output in zip(oracle.prompts, oracle.outputs, strict=True):
        for index, token in enumerate(output):
            sequence = Sequence("s", NO_ATTEMPT, prompt + output[:index], [], Sampling(), 1, blocks=list(range(1, 20)))
            hits += executor.execute([Chunk(sequence, 0, sequence.num_tokens)]).tokens == [token]
            total += 1
    assert hits / total >= (1.0 if dtype == "float32" else 0.85)


def test_the_fingerprint_tells_weights_and_dtype_apart(oracles: dict[str, Oracle]) -> None:
    def fingerprint(family: str, dtype: str = "float32", blocks: int = 2) -> bytes:
        return TorchExecutor(oracles[family].directory, num_blocks=blocks, dtype=dtype).fingerprint

    assert fingerprint("llama-group-3") == fingerprint("llama-group-3", blocks=5)
    assert (
        len({fingerprint("llama-group-3"), fingerprint("llama-linear"), fingerprint("llama-group-3", "float64")}) == 3
    )


def test_a_token_outside_the_vocabulary_is_refused(oracles: dict[str, Oracle]) -> None:
    executor = TorchExecutor(oracles["llama-group-3"].directory, num_blocks=4)
    sequence = Sequence("s", NO_ATTEMPT, [1, VOCAB], [], Sampling(), 1, blocks=[1])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        executor.execute([Chunk(sequence, 0, 2)])


def test_an_empty_step_and_a_step_without_sampling_rows(oracles: dict[str, Oracle]) -> None:
    executor = TorchExecutor(oracles["llama-group-3"].directory, num_blocks=4)
    sequence = Sequence("s", NO_ATTEMPT, [1, 2, 3], [], Sampling(), 1, blocks=[1])
    assert executor.execute([]).tokens == []
    assert executor.execute([Chunk(sequence, 0, 2)]).tokens == []


def test_constructor_errors(oracles: dict[str, Oracle], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype 'int8'"):
        TorchExecutor(oracles["llama-group-3"].directory, num_blocks=4, dtype="int8")
    with pytest.raises(FileNotFoundError, match="not a model directory"):
        TorchExecutor(tmp_path / "absent", num_blocks=4)


@pytest.mark.parametrize("family", ["llama-group-7-tied-llama3", "qwen2-group-4", "qwen3-group-3-tied"])
def test_a_cached_prefix_changes_no_token(oracles: dict[str, Oracle], family: str) -> None:
    oracle = oracles[family]
    executor = TorchExecutor(oracle.directory, num_blocks=64, block_tokens=8, dtype="float64")
    loop = StepLoop(StepPlanner(ChunkedPolicy(MODEL, 64, 16)), BlockPool(64, 8))
    long, output = oracle.prompts[-1], oracle.outputs[-1]
    cached = []
    for turn in range(4):  # the same prompt, then conversations that go on from its own answer
        grown = turn if turn > 1 else 0
        one = Sequence(f"t{turn}", NO_ATTEMPT, long + output[:grown], [], Sampling(), OUTPUT - grown)
        loop.add(one)
        while loop.busy:
            plan = loop.plan(0)
            loop.commit(plan, executor.execute(plan.chunks))
        assert one.output == output[grown:]
        cached.append(one.cached_tokens)
    assert cached[0] == 0 and min(cached[1:]) >= 96


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", MODELS)
def test_hundreds_of_cases_with_everything_forced(family: str, tmp_path: Path) -> None:
    """Prompts of 1 to 2,000 tokens, many with common beginnings, 16 at once, any chunk size, too few blocks."""
    chance, output = random.Random(family), 20
    model = make_model(family)
    directory = save(model, tmp_path)
    common = random_prompt(600, 99)
    lengths = [1, 2, 2_000, *(int(2 ** chance.uniform(0, 10)) for _ in range(37))]
    prompts = [
        [*common[: chance.choice([0, 0, min(length - 1, 600)])], *random_prompt(length, seed)][:length]
        for seed, length in enumerate(lengths)
    ]
    expected = [continuation(model, prompt, output) for prompt in prompts]
    cases = preempted = hits = 0
    for budget, blocks, block_tokens, prefix_cache in (
        (256, 600, 16, True), (chance.randrange(33, 256), 510, 4, True), (chance.randrange(8, 33), 260, 8, True),
        (64, 507, 4, False), (chance.randrange(1, 8), 700, 16, True),
    ):  # fmt: skip
        executor = TorchExecutor(directory, blocks, block_tokens, "float64")
        order = list(range(len(prompts))) * 2
        chance.shuffle(order)
        if budget < 8:
            order = [index for index in order if lengths[index] < 200]
        members = [Sequence(str(at), NO_ATTEMPT, prompts[i], [], Sampling(), output) for at, i in enumerate(order)]
        outputs, times = run(executor, members, budget, 16, blocks, prefix_cache)
        assert outputs == [expected[i] for i in order]
        cases += len(order)
        preempted += times
        hits += sum(one.cached_tokens > 0 for one in members)
    assert cases > 350 and preempted > 0 and hits > 0
