"""The modelled engine: no weights, no torch. It takes as long as the step-time model says a GPU would, and its
tokens are a hash chain, so that one lost, repeated or spliced token makes every later one wrong.

    h[0] = H(prompt, seed);  token[i] = h[i] mod vocab;  h[i+1] = H(h[i], token[i])
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows

from hyperflexis_common import tokens as packing
from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_worker.core.planner import Chunk, StepPlan
from hyperflexis_worker.core.sampled import Sampled
from hyperflexis_worker.core.sequence import Sequence

ENGINE_VERSION = b"modelled-1"


def _start(prompt: Iterable[int], seed: int) -> int:
    digest = hashlib.blake2b(packing.pack(prompt), digest_size=8, key=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little")


def _next(state: int, token: int) -> int:
    digest = hashlib.blake2b(state.to_bytes(8, "little") + token.to_bytes(4, "little"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def reference_tokens(prompt: Rows[int], seed: int, count: int, vocab_size: int) -> list[int]:
    """The first `count` output tokens of an undisturbed run."""
    state, made = _start(prompt, seed), []
    for _ in range(count):
        made.append(state % vocab_size)
        state = _next(state, made[-1])
    return made


class ModelledExecutor:
    """An Executor that sleeps and hashes."""

    def __init__(
        self,
        vocab_size: int,
        model: StepTimeModel,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._vocab_size = vocab_size
        self._model = model
        self._sleep = sleep
        self._states: dict[Sequence, tuple[int, int]] = {}
        """Hash state of a sequence and how many output tokens it has taken in."""

    def fingerprint(self, model_name: str) -> bytes:
        return hashlib.blake2b(ENGINE_VERSION + f"{model_name}:{self._vocab_size}".encode(), digest_size=16).digest()

    def execute(self, chunks: Rows[Chunk]) -> Sampled:
        self._sleep(self._model.predict_us(StepPlan(chunks=list(chunks)).shape) / 1e6)
        return Sampled([self._token(chunk.sequence) for chunk in chunks if chunk.samples])

    def forget(self, sequence: Sequence) -> None:
        self._states.pop(sequence, None)

    def _token(self, sequence: Sequence) -> int:
        state, taken = self._states.get(sequence) or (_start(sequence.prompt, sequence.sampling.seed), 0)
        for token in sequence.output[taken:]:
            state = _next(state, token)
        self._states[sequence] = (state, len(sequence.output))
        return state % self._vocab_size
