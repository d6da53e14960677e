"""The modelled engine: no weights, no torch. It takes as long as the step-time model says a GPU would, and its tokens
are hashes of everything before them, so that one lost, repeated or spliced token makes every later one wrong.

Like a real engine it keeps a state for each token in the pool, and reads all of them for the next token, so that a
wrong, stale or misplaced block makes every later token wrong as well:

    state[p] = state[p - 1] + hash(p, token[p])                    what the pool holds; the same for every seed
    next     = hash(seed, sum of weight[p] * state[p]) mod vocab   over all p so far, read from the pool

All sums modulo 2**64.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows

import numpy as np
import numpy.typing as npt

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_worker.kv.storage import HostStorage
from hyperflexis_worker.steps.sampled import Sampled
from hyperflexis_worker.steps.sequence import Sequence
from hyperflexis_worker.steps.step_plan import Chunk, StepPlan

ENGINE_VERSION = b"modelled-2"

Words = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_FIRST, _SECOND, _GOLDEN = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0x9E3779B97F4A7C15
_SHIFTS = np.array([30, 27, 31], dtype=np.uint64)
_FACTORS = np.array([_FIRST, _SECOND, _GOLDEN], dtype=np.uint64)


def _mix(word: int) -> int:
    """splitmix64's finaliser."""
    word = ((word ^ (word >> 30)) * _FIRST) & _MASK
    word = ((word ^ (word >> 27)) * _SECOND) & _MASK
    return word ^ (word >> 31)


def _mix_all(words: Words) -> Words:
    words = (words ^ (words >> _SHIFTS[0])) * _FACTORS[0]
    words = (words ^ (words >> _SHIFTS[1])) * _FACTORS[1]
    mixed: Words = words ^ (words >> _SHIFTS[2])
    return mixed


def _term(position: int, token: int) -> int:
    """hash(p, token)"""
    return _mix((position + 1) * _GOLDEN + token & _MASK)


def _terms(start: int, tokens: Rows[int]) -> Words:
    places = np.arange(start + 1, start + len(tokens) + 1, dtype=np.uint64)
    return _mix_all(places * _FACTORS[2] + np.asarray(tokens, dtype=np.uint64))


def _weight(position: int) -> int:
    return _mix(~position & _MASK) | 1


def _drawn(total: int, seed: int, vocab_size: int) -> int:
    return _mix((total + _mix((seed & _MASK) ^ _GOLDEN)) & _MASK) % vocab_size


def reference_tokens(prompt: Rows[int], seed: int, count: int, vocab_size: int) -> list[int]:
    """The first `count` output tokens of an undisturbed run."""
    state = total = 0
    made: list[int] = []
    for position in range(len(prompt) + count - 1):
        token = prompt[position] if position < len(prompt) else made[-1]
        state = (state + _term(position, token)) & _MASK
        total = (total + _weight(position) * state) & _MASK
        if position >= len(prompt) - 1:
            made.append(_drawn(total, seed, vocab_size))
    return made


class ModelledPool:
    """`total` blocks of a 64-bit state for each of `block_tokens` tokens."""

    def __init__(self, total: int, block_tokens: int) -> None:
        self.total = total
        self.block_tokens = block_tokens
        self.states: Words = np.zeros((total, block_tokens), dtype=np.uint64)
        self._words = self.states.data.cast("B").cast("Q")
        self._weights = _weights(0, 256)

    def storage(self, layout: bytes) -> HostStorage:
        return HostStorage(self.states.view(np.uint8).reshape(self.total, -1), layout)

    def extend(self, blocks: Rows[int], start: int, tokens: Rows[int]) -> None:
        """The tokens [start, …) of a sequence in these blocks; everything before them is there."""
        size, words = self.block_tokens, self._words
        before = words[blocks[(start - 1) // size] * size + (start - 1) % size] if start else 0
        if len(tokens) == 1:  # what nearly every step is made of
            state = (before + _term(start, tokens[0])) & _MASK
            words[blocks[start // size] * size + start % size] = state
            return
        places = np.arange(start, start + len(tokens))
        rows = np.asarray(blocks)[places // size] * size + places % size
        self.states.reshape(-1)[rows] = _terms(start, tokens).cumsum(dtype=np.uint64) + np.uint64(before)

    def total_of(self, blocks: Rows[int], tokens: int) -> int:
        """Sum of weight times state over the first `tokens` tokens."""
        if tokens > len(self._weights):
            self._weights = np.concatenate([self._weights, _weights(len(self._weights), tokens)])
        states = self.states.take(blocks, 0).reshape(-1)[:tokens]
        return int(states.dot(self._weights[:tokens]))


def _weights(start: int, more: int) -> Words:
    return _mix_all(~np.arange(start, start + more, dtype=np.uint64)) | np.uint64(1)  # odd: nothing is lost of a state


class ModelledExecutor:
    """An Executor that sleeps and hashes. It keeps nothing of a sequence but what is in the pool."""

    def __init__(
        self,
        vocab_size: int,
        model: StepTimeModel,
        pool: ModelledPool,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.pool = pool
        self._vocab_size = vocab_size
        self._model = model
        self._sleep = sleep

    def fingerprint(self, model_name: str) -> bytes:
        return hashlib.blake2b(ENGINE_VERSION + f"{model_name}:{self._vocab_size}".encode(), digest_size=16).digest()

    def execute(self, chunks: Rows[Chunk]) -> Sampled:
        self._sleep(self._model.predict_us(StepPlan(chunks=list(chunks)).shape) / 1e6)
        for chunk in chunks:
            sequence = chunk.sequence
            self.pool.extend(sequence.blocks, chunk.start, sequence.tokens(chunk.start, chunk.length))
        return Sampled([self._token(chunk.sequence) for chunk in chunks if chunk.samples])

    def forget(self, sequence: Sequence) -> None:
        """Nothing is kept."""

    def _token(self, sequence: Sequence) -> int:
        total = self.pool.total_of(sequence.blocks[: self._blocks(sequence)], sequence.num_tokens)
        return _drawn(total, sequence.sampling.seed, self._vocab_size)

    def _blocks(self, sequence: Sequence) -> int:
        return -(-sequence.num_tokens // self.pool.block_tokens)
