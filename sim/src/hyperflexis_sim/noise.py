"""How much longer or shorter than modelled each step takes: one seeded stream per worker."""

from __future__ import annotations

import numpy as np

BATCH = 8_192


class Noise:
    """Log-normal factors of mean 1 and the given relative deviation; a leap that is cut gives its draws back."""

    def __init__(self, deviation: float, seed: tuple[int, ...]) -> None:
        self._sigma = float(np.sqrt(np.log1p(deviation**2)))
        self._random = np.random.default_rng(seed)
        self._drawn = np.empty(0)
        self._next = 0

    def take(self, count: int) -> np.ndarray:
        """[count]"""
        if self._next + count > len(self._drawn):
            normal = self._random.standard_normal(BATCH)
            fresh = np.exp(self._sigma * normal - self._sigma**2 / 2)
            # What was drawn may still be given back, by one leap at most.
            keep = max(self._next - BATCH, 0)
            self._drawn = np.concatenate([self._drawn[keep:], fresh])
            self._next -= keep
        factors = self._drawn[self._next : self._next + count]
        self._next += count
        return factors

    def give_back(self, count: int) -> None:
        self._next -= count
