"""How long one engine step takes: the one model that scheduler, worker, scaler and simulator share.

    t = c0 + c1*min(N,256) + c2*max(0,N-256) + c3*sum P(P/2+C) + c4*KV + c5*B + host

N tokens in the step, P a prefill chunk, C the context it attends to, KV context tokens of all decodes, B
decodes. The form and the seed coefficients were fitted to the per-operator tables of ai-dynamo/aiconfigurator
(Apache-2.0); they are kernel times, `host_us` is added for the framework.
"""

from __future__ import annotations

import json
import math
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hyperflexis.common.v1 import capability_pb2

Number = TypeVar("Number", float, npt.NDArray[np.float64])

PLATEAU_TOKENS = 256
"""Up to here a step is bound by reading the weights; beyond it, by arithmetic."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step does, as the model sees it."""

    prefill_chunks: tuple[tuple[int, int], ...] = ()
    """(chunk tokens P, context tokens C before it) of each prefill chunk."""
    decodes: int = 0
    decode_context_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.decodes + sum(chunk for chunk, _ in self.prefill_chunks)


@dataclass(frozen=True, slots=True)
class StepTimeModel:
    """Coefficients in microseconds (per token, per token pair, per context token, per decode)."""

    c0_us: float
    c1_us: float
    c2_us: float
    c3_us: float
    c4_us: float
    c5_us: float = 0.0
    host_us: float = 1_000.0

    def predict_us(self, shape: StepShape) -> float:
        tokens = shape.tokens
        if tokens == 0:
            return 0.0
        pairs = sum(chunk * (chunk / 2 + context) for chunk, context in shape.prefill_chunks)
        return self._empty_us(shape.decodes, shape.decode_context_tokens) + self._linear_us(tokens) + self.c3_us * pairs

    def decodes_us(self, decodes: int, context_tokens: float) -> float:
        """A step of nothing but so many decodes, with so much context together; of none: what each step costs."""
        return self._empty_us(decodes, context_tokens) + self._linear_us(decodes)

    def prefill_us(self, tokens: Number, context: Number | float = 0) -> Number:
        """Marginal time of prefilling `tokens` after `context`, in steps that are busy anyway; of one, or of many."""
        return self.c2_us * tokens + self.c3_us * tokens * (tokens / 2 + context)

    def decode_us(self, tokens: float, context: float) -> float:
        """Marginal time of `tokens` decode steps of one request from `context` on, in steps that are busy anyway."""
        return tokens * (self.c2_us + self.c5_us + self.c4_us * (context + tokens / 2))

    @property
    def base_us(self) -> float:
        """What a step costs beyond the marginal time of its tokens."""
        return max(self.c0_us + self.host_us + PLATEAU_TOKENS * (self.c1_us - self.c2_us), 0.0)

    def chunk_us(self, before: int, tokens: int, context: int) -> float:
        """What a prefill chunk of `tokens` after `context` adds to a step that has `before` tokens already."""
        return self._linear_us(before + tokens) - self._linear_us(before) + self.c3_us * tokens * (tokens / 2 + context)

    def chunk_within(self, before: int, context: int, budget_us: float) -> int:
        """The largest chunk after `context` that adds at most `budget_us` to a step of `before` tokens."""
        flat = max(PLATEAU_TOKENS - before, 0)
        inside = _tokens_within(self.c1_us, context * self.c3_us, self.c3_us, budget_us)
        if inside <= flat:
            return int(inside)
        # Beyond the plateau: the same equation, with what its cheaper tokens save added to the budget.
        saved_us = flat * (self.c2_us - self.c1_us)
        return int(max(_tokens_within(self.c2_us, context * self.c3_us, self.c3_us, budget_us + saved_us), flat))

    def _linear_us(self, tokens: int) -> float:
        if tokens <= PLATEAU_TOKENS:
            return self.c1_us * tokens
        return self.c1_us * PLATEAU_TOKENS + self.c2_us * (tokens - PLATEAU_TOKENS)

    def _empty_us(self, decodes: int, context_tokens: float) -> float:
        """Of a step, what its tokens do not cost."""
        return self.c0_us + self.c4_us * context_tokens + self.c5_us * decodes + self.host_us

    def hosted(self, between_us: float) -> StepTimeModel:
        """The same where so much passes between two steps: what a step means to those who wait."""
        return replace(self, host_us=self.host_us + between_us) if between_us else self

    def scaled(self, factor: float) -> StepTimeModel:
        """The same device, so many times slower."""
        return StepTimeModel(*(factor * value for value in astuple(self)))

    def proto(self) -> capability_pb2.StepTimeModel:
        return capability_pb2.StepTimeModel(
            c0_us=self.c0_us,
            c1_us=self.c1_us,
            c2_us=self.c2_us,
            c3_us=self.c3_us,
            c4_us=self.c4_us,
            c5_us=self.c5_us,
            host_us=self.host_us,
        )


def _tokens_within(linear: float, context: float, pairs: float, budget_us: float) -> float:
    """The n >= 0 with (linear + context) n + pairs n^2 / 2 = budget_us; where n costs nothing, a large number."""
    if budget_us <= 0:
        return 0.0
    slope = linear + context
    if pairs <= 0:
        return budget_us / slope if slope > 0 else _ANY
    # The stable form: no difference of nearly equal numbers where n^2 hardly matters.
    return min(2 * budget_us / (slope + math.sqrt(slope * slope + 2 * pairs * budget_us)), _ANY)


_ANY = float(1 << 40)

SEEDS = {
    "h100/llama-3.1-8b/tp1": StepTimeModel(6433.13, 7.049, 18.27, 0.00105, 0.03942, 3.242),
    "h100/qwen2.5-7b/tp1": StepTimeModel(5956.4, 5.758, 17.84, 0.0008755, 0.01785, 1.922),
    "h100/qwen2.5-32b/tp2": StepTimeModel(14240.1, 18.14, 49.98, 0.00114, 0.0408, 0.9493),
    "h100/llama-3.1-70b/tp4": StepTimeModel(15429.6, 28.55, 59.26, 0.0016, 0.02613, 1.573),
    "h200/llama-3.1-8b/tp1": StepTimeModel(4921.56, 8.198, 19.05, 0.0009901, 0.02739, 4.462),
    "h200/qwen2.5-7b/tp1": StepTimeModel(4586.4, 7.329, 18.54, 0.0007277, 0.0124, 1.839),
    "h200/qwen2.5-32b/tp1": StepTimeModel(18546.1, 26.47, 87.91, 0.002551, 0.05726, 7.059),
    "a100/llama-3.1-8b/tp1": StepTimeModel(10606.8, 33.9, 54.74, 0.002929, 0.07792, 3.57),
    "l40s/llama-3.1-8b/tp1": StepTimeModel(22712.7, 25.88, 63.38, 0.003521, 0.1818, 1.208),
    # Not a GPU: the sample model on one core of a small CPU machine, fitted coarsely.
    "cpu/tiny/tp1": StepTimeModel(1_740, 72.0, 100.0, 0.096, 0.54, 130.0, host_us=200.0),
    # Not a GPU: quick steps for tests, demos and the fault suites.
    "test/tiny/tp1": StepTimeModel(500, 1.0, 2.0, 1e-5, 1e-4, host_us=0.0),
}
"""Seed profiles by gpu/model/tp. Kernel-time fits, within 2-4 % of the tables they come from."""


def load_profile(profile: str) -> StepTimeModel:
    """A seed by its name, or the `coefficients` of a file that `hyperflexis profile` wrote. Raises ValueError."""
    if profile in SEEDS:
        return SEEDS[profile]
    path = Path(profile)
    if not path.is_file():
        known = ", ".join(sorted(SEEDS))
        raise ValueError(f"step-time profile {profile!r} is neither a file nor one of the known: {known}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["coefficients"]
        values = {field.name: float(found[field.name]) for field in fields(StepTimeModel)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no step-time profile: {type(error).__name__}: {error}") from error
    wrong = [name for name, value in values.items() if not 0 <= value < math.inf]
    if wrong:
        raise ValueError(f"{path}: {', '.join(wrong)} must be finite and not negative")
    return StepTimeModel(**values)
