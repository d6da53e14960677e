"""The engine against transformers: tokens equal, one by one, however the work was cut into steps.

In float64, where the order of summation practically never decides a token.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hyperflexis_common.attempt import NO_ATTEMPT
from hyperflexis_worker.core.blocks import BlockPool
from hyperflexis_worker.core.output_lengths import OutputLengths
from hyperflexis_worker.core.planner import BudgetPlanner, Chunk
from hyperflexis_worker.core.sequence import Sampling, Sequence
from hyperflexis_worker.core.step_loop import StepLoop
from hyperflexis_worker.embedded.executor import TorchExecutor

VOCAB, OUTPUT, LENGTHS = 211, 12, (1, 2, 15, 16, 17, 40, 97)
SIZE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # bold, so that the most likely token depends on the context
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def make(family: str) -> PreTrainedModel:
    torch.manual_seed(7)
    model: PreTrainedModel
    match family:
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**SIZE))
        case "llama-tied-llama3":
            model = LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=True, rope_parameters=LLAMA3))
        case "llama-linear":
            rope = {"rope_type": "linear", "factor": 2.5, "rope_theta": 1_000.0}
            model = LlamaForCausalLM(LlamaConfig(**SIZE, rope_parameters=rope))
        case "qwen2":
            model = Qwen2ForCausalLM(Qwen2Config(**SIZE))
        case _:
            model = Qwen3ForCausalLM(Qwen3Config(**SIZE, head_dim=16))
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # initialised to zeros and ones, which would hide an error
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


FAMILIES = ["llama", "llama-tied-llama3", "llama-linear", "qwen2", "qwen3"]


@dataclass(frozen=True)
class Oracle:
    directory: Path
    prompts: list[list[int]]
    outputs: list[list[int]]


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Oracle]:
    return {family: make_oracle(tmp_path_factory.mktemp(family), make(family)) for family in FAMILIES}


def make_oracle(directory: Path, model: PreTrainedModel) -> Oracle:
    model = model.double()
    model.save_pretrained(directory)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(0, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]
    outputs = []
    with torch.inference_mode():
        for prompt in prompts:
            tokens = list(prompt)
            for _ in range(OUTPUT):
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
            outputs.append(tokens[len(prompt) :])
    return Oracle(directory, prompts, outputs)


def run(
    executor: TorchExecutor, sequences: Rows[Sequence], max_tokens: int = 256, max_sequences: int = 16, blocks: int = 64
) -> tuple[list[list[int]], int]:
    """Outputs, and how many preemptions it took."""
    surprised = OutputLengths()  # where blocks are scarce, sequences are preempted
    for _ in range(500):
        surprised.learn("", 0)
    pool = BlockPool(blocks, executor.pool.block_tokens)
    loop = StepLoop(BudgetPlanner(max_tokens, max_sequences, lengths=surprised), pool)
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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("budget", [1, 7, 16, 64, 256])
def test_greedy_tokens_equal_transformers(oracles: dict[str, Oracle], family: str, budget: int) -> None:
    oracle = oracles[family]
    executor = TorchExecutor(oracle.directory, num_blocks=64, dtype="float64")
    outputs, _ = run(executor, sequences(oracle.prompts), max_tokens=budget)
    assert outputs == oracle.outputs
    assert len({token for output in outputs for token in output}) > 20, "the oracle says the same thing always"


@pytest.mark.parametrize("family", ["llama", "qwen3"])
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
    oracle = oracles["llama"]
    rules = [Sampling(1.0 + i / 5, (1.0, 0.8)[i % 2], (0, 0, 30)[i % 3], seed=2**63 + i) for i in range(len(LENGTHS))]

    def fresh() -> list[Sequence]:
        return [Sequence(str(i), NO_ATTEMPT, oracle.prompts[i], [], rules[i], OUTPUT) for i in range(len(LENGTHS))]

    alone = TorchExecutor(oracle.directory, num_blocks=64, dtype="float64")
    expected = [run(alone, [sequence])[0][0] for sequence in fresh()]
    other = TorchExecutor(oracle.directory, num_blocks=blocks, block_tokens=block_tokens, dtype="float64")
    members = fresh()
    run(other, [members[i] for i in order], max_tokens=budget, max_sequences=together, blocks=blocks)
    assert [sequence.output for sequence in members] == expected


def test_a_resumed_request_goes_on_with_the_same_draws(oracles: dict[str, Oracle]) -> None:
    oracle = oracles["qwen2"]
    executor = TorchExecutor(oracle.directory, num_blocks=64, dtype="float64")
    rules = Sampling(1.5, 0.9, seed=11)
    (whole,), _ = run(executor, sequences([oracle.prompts[3]], rules))
    resumed = Sequence("r", NO_ATTEMPT, oracle.prompts[3], whole[:5], rules, OUTPUT, committed=5)
    run(executor, [resumed])
    assert resumed.output == whole


def test_padding_and_other_owners_leftovers_do_not_matter(oracles: dict[str, Oracle]) -> None:
    oracle = oracles["llama"]
    executor = TorchExecutor(oracle.directory, num_blocks=64, dtype="float64")
    executor.pool.tensor.fill_(float("nan"))
    outputs, _ = run(executor, sequences(oracle.prompts), max_tokens=50)
    assert outputs == oracle.outputs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_near_in_lower_precision(oracles: dict[str, Oracle], dtype: str) -> None:
    """Teacher-forced: a share of the oracle's tokens, since rounding may flip a near tie."""
    oracle = oracles["qwen3"]
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

    assert fingerprint("llama") == fingerprint("llama", blocks=5)
    assert len({fingerprint("llama"), fingerprint("llama-linear"), fingerprint("llama", "float64")}) == 3


def test_a_token_outside_the_vocabulary_is_refused(oracles: dict[str, Oracle]) -> None:
    executor = TorchExecutor(oracles["llama"].directory, num_blocks=4)
    sequence = Sequence("s", NO_ATTEMPT, [1, VOCAB], [], Sampling(), 1, blocks=[1])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        executor.execute([Chunk(sequence, 0, 2)])


def test_an_empty_step_and_a_step_without_sampling_rows(oracles: dict[str, Oracle]) -> None:
    executor = TorchExecutor(oracles["llama"].directory, num_blocks=4)
    sequence = Sequence("s", NO_ATTEMPT, [1, 2, 3], [], Sampling(), 1, blocks=[1])
    assert executor.execute([]).tokens == []
    assert executor.execute([Chunk(sequence, 0, 2)]).tokens == []


def test_constructor_errors(oracles: dict[str, Oracle], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype 'int8'"):
        TorchExecutor(oracles["llama"].directory, num_blocks=4, dtype="int8")
    with pytest.raises(FileNotFoundError, match="not a model directory"):
        TorchExecutor(tmp_path / "absent", num_blocks=4)
