"""How much of a KV pool those who run will need at the worst moment, as far as one can tell.

Each grows by a token a step and leaves everything when it ends; when that will be, the lengths of earlier answers tell.
So what they need at any time ahead has a mean and a spread, and the worst of those times must fit, with two spreads on
top. To add up everybody's growth as if nobody ended before the others would leave much of the pool idle. After
the Past-Future scheduler (arXiv 2507.10150), which draws the lengths instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_worker.steps.prefill_queue import Floats, Waiting

AHEAD = np.unique(np.floor([0, *(2 ** (half / 2) for half in range(31))]))
"""[k] The spans of tokens ahead that are looked at begin here ..."""
_GROWN = np.append(AHEAD[1:], 65_537) - 1
"""[k] ... and by their ends everybody who is there when they begin has grown by so much at most. Beyond 65,536 nobody
looks."""
SPREADS = 2.0
"""Standard deviations: at any one time ahead a normal variable exceeds them one time in forty; at some time, which is
what preempts, one in fourteen at most (a test, of three distributions)."""


class PeakUse:
    """Of those added, in tokens."""

    def __init__(self, lengths: OutputLengths) -> None:
        self._lengths = lengths
        self._added: list[tuple[Sequence[str], Floats, Floats, Floats]] = []
        """Those that the sums do not have yet: most pools are so roomy that nobody asks for them."""
        self._most = 0.0
        """If every answer got as long as any."""
        self._mean = np.zeros(len(AHEAD))
        self._variance = np.zeros(len(AHEAD))

    def add(self, tiers: Sequence[str], held: Floats, made: Floats, max_tokens: Floats) -> None:
        """[n] each. `held`: what each has, or will have when its prompt is computed."""
        self._added.append((tiers, held, made, max_tokens))
        self._most += self._at_most(tiers, held, made, max_tokens)

    def add_requests(self, requests: Sequence[Waiting], held: Sequence[float]) -> None:
        made = np.array([request.made for request in requests], np.float64)
        max_tokens = np.array([request.max_tokens for request in requests], np.float64)
        self.add([request.tier for request in requests], np.array(held, np.float64), made, max_tokens)

    def fits(self, tier: str, held: float, made: int, max_tokens: int, within: float) -> bool:
        """Whether one more could run to its end within so many."""
        one = [tier], np.array([held], np.float64), np.array([float(made)]), np.array([float(max_tokens)])
        if self._most + self._at_most(*one) <= within:
            return True
        for added in self._added:
            mean, variance = self._need(*added)
            self._mean += mean
            self._variance += variance
        self._added.clear()
        mean, variance = self._need(*one)
        return float((self._mean + mean + SPREADS * np.sqrt(self._variance + variance)).max()) <= within

    def _at_most(self, tiers: Sequence[str], held: Floats, made: Floats, max_tokens: Floats) -> float:
        return float((held + self._lengths.most(tiers, made, max_tokens)).sum())

    def _need(self, tiers: Sequence[str], held: Floats, made: Floats, max_tokens: Floats) -> tuple[Floats, Floats]:
        """[k] each"""
        lasts = self._lengths.outlasting(tiers, made, max_tokens, AHEAD)
        most = self._lengths.most(tiers, made, max_tokens)
        uses = held[:, None] + np.minimum(_GROWN, most[:, None])
        each = lasts * uses
        return each.sum(axis=0), (each * (1 - lasts) * uses).sum(axis=0)
