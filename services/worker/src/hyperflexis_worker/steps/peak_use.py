"""How much of a KV pool those who run will need at the worst moment, as far as one can tell.

Each grows by the tokens that it is expected to make yet, and leaves everything when it has made them. Memory is
shortest just before one of them ends: what those that last longer hold by then is known. To add up everybody's growth
as if nobody ended before the others would leave much of the pool idle. The estimate is that of the Past-Future
scheduler (arXiv 2507.10150), with means where that has distributions.
"""

from __future__ import annotations

import numpy as np

from hyperflexis_worker.steps.prefill_queue import Floats


class PeakUse:
    """`held` and `left`: [n], what each has, or will have when its prompt is computed, and what it will grow by. In
    tokens or in blocks."""

    def __init__(self, held: Floats, left: Floats) -> None:
        order = np.argsort(-left, kind="stable")
        self._left = left[order]
        self._held = held[order]
        self._count()

    def with_one(self, held: float, left: float) -> float:
        """The peak if one more ran."""
        at = int(np.searchsorted(-self._left, -left, "right"))
        before = float(self._sums[at - 1]) if at else 0.0
        own = before + held + left * (at + 1)
        longer, shorter = self._peaks[:at], self._peaks[at:] + self._left[at:] + held
        return max(own, float(longer.max(initial=0.0)), float(shorter.max(initial=0.0)))

    def add(self, held: float, left: float) -> None:
        at = int(np.searchsorted(-self._left, -left, "right"))
        self._left = np.insert(self._left, at, left)
        self._held = np.insert(self._held, at, held)
        self._count()

    def _count(self) -> None:
        self._sums = np.cumsum(self._held)
        self._peaks = self._sums + self._left * np.arange(1, len(self._left) + 1)
        """[n] Just before each ends, in order of how long they last, the longest first."""
