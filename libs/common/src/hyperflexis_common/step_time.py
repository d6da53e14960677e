"""How long one engine step takes: the one model that scheduler, worker, scaler and simulator share.

    t = c0 + c1*min(N,256) + c2*max(0,N-256) + c3*sum P(P/2+C) + c4*KV + c5*B + host

N tokens in the step, P a prefill chunk, C the context it attends to, KV context tokens of all decodes, B
decodes. The form and the seed coefficients were fitted to the per-operator tables of ai-dynamo/aiconfigurator
(Apache-2.0); they are kernel times, `host_us` is added for the framework.
"""

from __future__ import annotations

import json
import math
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from hyperflexis.common.v1 import capability_pb2

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
        return (
            self.c0_us
            + self.c1_us * min(tokens, PLATEAU_TOKENS)
            + self.c2_us * max(0, tokens - PLATEAU_TOKENS)
            + self.c3_us * pairs
            + self.c4_us * shape.decode_context_tokens
            + self.c5_us * shape.decodes
            + self.host_us
        )

    def prefill_us(self, tokens: int, context: int = 0) -> float:
        """Marginal time of prefilling `tokens` after `context`, in steps that are busy anyway."""
        return self.c2_us * tokens + self.c3_us * tokens * (tokens / 2 + context)

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


SEEDS = {
    "h200/llama-3.1-8b/tp1": StepTimeModel(4_920, 8.20, 19.1, 9.9e-4, 2.74e-2),
    "h200/qwen2.5-7b/tp1": StepTimeModel(4_590, 7.33, 18.5, 7.3e-4, 1.24e-2),
    "h100/llama-3.1-8b/tp1": StepTimeModel(6_430, 7.05, 18.3, 1.05e-3, 3.94e-2),
    "a100/llama-3.1-8b/tp1": StepTimeModel(10_600, 33.9, 54.7, 2.9e-3, 7.79e-2),
    "l40s/llama-3.1-8b/tp1": StepTimeModel(22_700, 25.9, 63.4, 3.5e-3, 1.82e-1),
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
