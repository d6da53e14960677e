"""How long answers get, learned per tier: what placement and admission leave room for, and what a victim's size is
judged by."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PRIOR_TOKENS = 128.0
"""Believed of a tier that nothing is known of yet."""
MEMORY = 256
"""Answers that a mean looks back on, about."""


class OutputLengths:
    """A moving mean of the output tokens of each tier's finished requests."""

    def __init__(self) -> None:
        self._means: dict[str, tuple[float, int]] = {}

    def learn(self, tier: str, tokens: int) -> None:
        mean, count = self._means.get(tier, (PRIOR_TOKENS, 1))
        count = min(count + 1, MEMORY)
        self._means[tier] = (mean + (tokens - mean) / count, count)

    def mean(self, tier: str) -> float:
        return self._means.get(tier, (PRIOR_TOKENS, 1))[0]

    def remaining(self, tier: str, made: int, max_tokens: int) -> float:
        """Output tokens that are still to come, as far as one can tell: one beyond the mean has half of it left."""
        mean = self.mean(tier)
        return min(max_tokens - made, max(mean - made, mean / 2) + 1)

    @staticmethod
    def remaining_of(mean: Floats, made: Floats, max_tokens: Floats) -> Floats:
        """[n] The same of many, whose tiers make so many on average."""
        remaining: Floats = np.minimum(max_tokens - made, np.maximum(mean - made, mean / 2) + 1)
        return remaining
