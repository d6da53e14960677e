"""How long answers get, learned per tier: what admission leaves room for."""

from __future__ import annotations

from hyperflexis_worker.core.sequence import Sequence

PRIOR_TOKENS = 128.0
"""Believed of a tier that nothing is known of yet."""
MEMORY = 64
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

    def remaining(self, sequence: Sequence) -> int:
        """Output tokens that are still to come, as far as one can tell: one beyond the mean has half of it left."""
        mean, made = self.mean(sequence.tier), len(sequence.output)
        return min(sequence.max_tokens - made, int(max(mean - made, mean / 2)) + 1)
