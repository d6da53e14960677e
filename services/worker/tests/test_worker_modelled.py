"""The modelled engine's tokens come out of its pool: what is wrong there is wrong in every later token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_common.attempt import NO_ATTEMPT
from hyperflexis_common.step_time import SEEDS
from hyperflexis_worker.modelled import ModelledExecutor, ModelledPool, reference_tokens
from hyperflexis_worker.steps.sequence import Sampling, Sequence
from hyperflexis_worker.steps.step_plan import Chunk

VOCAB = 1_000
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5]


def executor(pool: ModelledPool) -> ModelledExecutor:
    return ModelledExecutor(VOCAB, SEEDS["test/tiny/tp1"], pool, sleep=lambda _: None)


def decode(device: ModelledExecutor, sequence: Sequence, count: int) -> None:
    for _ in range(count):
        start = sequence.num_tokens - 1
        sequence.output += device.execute([Chunk(sequence, start, 1)]).tokens


def begun(device: ModelledExecutor, blocks: list[int], seed: int = 5) -> Sequence:
    sequence = Sequence("r", NO_ATTEMPT, PROMPT, [], Sampling(seed=seed), 100)
    sequence.blocks = blocks
    sequence.output += device.execute([Chunk(sequence, 0, len(PROMPT))]).tokens
    return sequence


@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=40),
    seed=st.integers(0, 2**64 - 1),
    block_tokens=st.integers(1, 9),
    cuts=st.lists(st.integers(1, 40), max_size=6),
)
def test_chunks_and_blocks_change_nothing(prompt: list[int], seed: int, block_tokens: int, cuts: list[int]) -> None:
    pool = ModelledPool(60, block_tokens)
    pool.states.fill(77)
    device, sequence = executor(pool), Sequence("r", NO_ATTEMPT, prompt, [], Sampling(seed=seed), 9)
    sequence.blocks = list(range(59, 0, -1))
    start = 0
    for end in sorted({min(cut, len(prompt)) for cut in [*cuts, len(prompt)]}):
        sequence.output += device.execute([Chunk(sequence, start, end - start)]).tokens
        start = end
    decode(device, sequence, 6)
    assert sequence.output == reference_tokens(prompt, seed, 7, VOCAB)


def swap(pool: ModelledPool) -> None:
    pool.states[[1, 2]] = pool.states[[2, 1]]


def stale(pool: ModelledPool) -> None:
    pool.states[1] = np.arange(4)


def one_bit(pool: ModelledPool) -> None:
    pool.states[1, 2] ^= np.uint64(1)


@pytest.mark.parametrize("harm", [swap, stale, one_bit])
def test_a_wrong_block_makes_every_later_token_wrong(harm: Callable[[ModelledPool], None]) -> None:
    pool = ModelledPool(20, 4)
    device = executor(pool)
    sequence = begun(device, list(range(1, 15)))
    decode(device, sequence, 4)
    harm(pool)
    decode(device, sequence, 20)
    expected = reference_tokens(PROMPT, 5, 25, VOCAB)
    assert sequence.output[:5] == expected[:5]
    assert all(a != b for a, b in zip(sequence.output[5:], expected[5:], strict=True))


def test_blocks_mean_the_same_whatever_the_seed() -> None:
    """Else the prefix cache could not share them."""
    pool = ModelledPool(20, 4)
    device = executor(pool)
    first = begun(device, [1, 2, 3, 4, 5])
    before = pool.states[1:3].copy()
    second = begun(device, [1, 2, 6, 7, 8], seed=6)
    assert (pool.states[1:3] == before).all() and first.output != second.output
    for sequence, seed in ((first, 5), (second, 6)):
        decode(device, sequence, 5)
        assert sequence.output == reference_tokens(PROMPT, seed, 6, VOCAB)


def test_a_block_moves_as_bytes() -> None:
    a, b = ModelledPool(20, 4), ModelledPool(30, 4)
    there, here = a.storage(b"x"), b.storage(b"x")
    sequence = begun(executor(a), [1, 2, 3, 4])
    here.write([29, 7, 11], there.read([1, 2, 3]))
    moved = Sequence("r", NO_ATTEMPT, PROMPT, list(sequence.output), Sampling(seed=5), 100)
    moved.blocks = [29, 7, 11]
    decode(executor(b), moved, 2)
    assert moved.output == reference_tokens(PROMPT, 5, 3, VOCAB)
    assert (there.total, there.block_bytes, here.address) == (20, 32, b.states.ctypes.data)
    with pytest.raises(ValueError, match="31 bytes for 1 blocks of 32"):
        here.write([1], b"0" * 31)
