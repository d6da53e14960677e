"""How long answers get, learned per tier: what placement and admission leave room for, and what a victim's size is
judged by."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PRIOR_TOKENS = 128.0
"""Believed of a tier that nothing is known of yet."""
MEMORY = 256
"""Answers that a mean looks back on, about."""


class OutputLengths:
    """Of each tier's finished requests: a moving mean of their output tokens, and the newest ones as they were."""

    def __init__(self) -> None:
        self._means: dict[str, tuple[float, int]] = {}
        self._newest: dict[str, deque[int]] = {}
        self._sorted: dict[str, Floats] = {}

    def learn(self, tier: str, tokens: int) -> None:
        mean, count = self._means.get(tier, (PRIOR_TOKENS, 1))
        count = min(count + 1, MEMORY)
        self._means[tier] = (mean + (tokens - mean) / count, count)
        self._newest.setdefault(tier, deque(maxlen=MEMORY)).append(tokens)
        self._sorted.pop(tier, None)

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

    def most(self, tiers: Sequence[str], made: Floats, max_tokens: Floats) -> Floats:
        """[n] Output tokens still to come if each answer gets as long as the longest of its tier's newest ones; where
        there are none, or it is longer already, as `max_tokens` allows."""
        longest = np.array([self._longest(tier) for tier in tiers])
        found: Floats = np.where(made < longest, np.minimum(longest, max_tokens), max_tokens) - made
        return found

    def _longest(self, tier: str) -> float:
        lengths = self._lengths(tier)
        return float(lengths[-1]) if len(lengths) else 0.0

    def outlasting(self, tiers: Sequence[str], made: Floats, max_tokens: Floats, ahead: Floats) -> Floats:
        """[n, k] The chance that each of n requests, which made so many tokens, makes more than `ahead` [k] others.

        Of the newest answers of its tier, those that were longer than what it made; and one more, of which only the
        mean is known (exponential), so that there is an answer for whoever outlasts them all."""
        reach = made[:, None] + ahead
        found = np.empty_like(reach)
        names = np.array(tiers)
        for tier in dict.fromkeys(tiers):
            rows = names == tier
            lengths = self._lengths(tier)
            longer = len(lengths) - np.searchsorted(lengths, reach[rows], "right")
            now = len(lengths) - np.searchsorted(lengths, made[rows], "right")
            found[rows] = (longer + np.exp(-ahead / self.mean(tier))) / (now[:, None] + 1)
        found[reach >= max_tokens[:, None]] = 0.0
        return found

    def _lengths(self, tier: str) -> Floats:
        found = self._sorted.get(tier)
        if found is None:
            found = self._sorted[tier] = np.sort(np.array(self._newest.get(tier, ()), np.float64))
        return found
