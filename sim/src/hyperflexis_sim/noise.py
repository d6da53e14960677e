"""How much longer or shorter than modelled each step takes: seeded streams, for each worker its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Source = Callable[[], Floats]
"""The next factors, BATCH of them."""

BATCH = 8_192
STRETCH = 64
"""Measured factors that stay together: a slow step is seldom alone."""
SIZES = 8
"""Classes of measured steps, equally many in each: small steps vary more than large ones."""


class Stream:
    """Hands out a source's factors one after the other; a leap that is cut gives its draws back."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._drawn = np.empty(0)
        self._next = 0

    def take(self, count: int) -> Floats:
        """[count]"""
        if self._next + count > len(self._drawn):
            # What was drawn may still be given back, by one leap at most.
            keep = max(self._next - BATCH, 0)
            self._drawn = np.concatenate([self._drawn[keep:], self._source()])
            self._next -= keep
        factors = self._drawn[self._next : self._next + count]
        self._next += count
        return factors

    def give_back(self, count: int) -> None:
        self._next -= count


class Noise:
    """Factors of mean 1 and the given relative deviation, whatever the step."""

    def __init__(self, deviation: float, seed: tuple[int, ...]) -> None:
        sigma = float(np.sqrt(np.log1p(deviation**2)))
        random = np.random.default_rng(seed)
        self._stream = Stream(lambda: np.exp(sigma * random.standard_normal(BATCH) - sigma**2 / 2))

    def take(self, times_us: Floats) -> Floats:
        """One for each of the coming steps, which by the model take so long."""
        return self._stream.take(len(times_us))

    def give_back(self, count: int) -> None:
        """The last so many steps do not come."""
        self._stream.give_back(count)


class MeasuredNoise(Noise):
    """What an engine's steps took over what the model says of them, drawn in stretches among steps of like size."""

    def __init__(self, steps: Sequence[tuple[float, float]], seed: tuple[int, ...]) -> None:
        """`steps`: (time by the model, factor) in the order in which they ran; at least one."""
        times_us, factors = np.asarray(steps, dtype=np.float64).T
        self._bounds = np.unique(np.quantile(times_us, np.arange(1, SIZES) / SIZES))
        sizes = np.searchsorted(self._bounds, times_us)
        # A class that holds none is never asked: steps between two bounds were what set them.
        self._streams = [
            Stream(_stretches(factors[sizes == size] if (sizes == size).any() else factors, (*seed, size)))
            for size in range(len(self._bounds) + 1)
        ]
        self._taken = np.empty(0, dtype=np.intp)

    def take(self, times_us: Floats) -> Floats:
        self._taken = np.searchsorted(self._bounds, times_us)
        factors = np.empty(len(times_us))
        for size in np.unique(self._taken):
            which = self._taken == size
            factors[which] = self._streams[size].take(int(which.sum()))
        return factors

    def give_back(self, count: int) -> None:
        for size, of_size in zip(*np.unique(self._taken[-count:], return_counts=True), strict=True):
            self._streams[size].give_back(int(of_size))


def _stretches(factors: Floats, seed: tuple[int, ...]) -> Source:
    random = np.random.default_rng(seed)

    def draw() -> Floats:
        starts = random.integers(len(factors), size=BATCH // STRETCH)
        found: Floats = factors[(starts[:, None] + np.arange(STRETCH)) % len(factors)].ravel()
        return found

    return draw
