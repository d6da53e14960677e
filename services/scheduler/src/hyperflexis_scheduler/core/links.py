"""How long it would take to read KV from one worker on another, with what is in flight on both.

A link's rate is what its target measured when it was made; what was never measured has the rate that is assumed.
"""

from __future__ import annotations

import numpy as np

from hyperflexis_scheduler.core.loads import Floats, Slots

US_PER_GB = 1e6


class Links:
    """Rates in GB/s, by slots of WorkerLoads. A worker's reads follow one another, and so do those from it."""

    def __init__(self, gbps: float = 25.0, setup_us: float = 1_000.0) -> None:
        self._gbps = gbps
        self._setup_us = setup_us
        self._measured: dict[tuple[int, int], float] = {}
        self._in_gb: dict[int, float] = {}
        self._out_gb: dict[int, float] = {}
        self._moves: dict[int, int] = {}

    def measured(self, source: int, target: int, gbps: float) -> None:
        self._measured[source, target] = gbps

    def gbps(self, source: int, target: int) -> float:
        return self._measured.get((source, target), self._gbps)

    def forget(self, slot: int) -> None:
        """The slot is another worker's from now on."""
        self._measured = {pair: rate for pair, rate in self._measured.items() if slot not in pair}
        for amounts in (self._in_gb, self._out_gb):
            amounts.pop(slot, None)
        self._moves.pop(slot, None)

    def begin(self, source: int, target: int, gb: float) -> None:
        """A move has been decided."""
        self._in_gb[target] = self._in_gb.get(target, 0.0) + gb
        self._out_gb[source] = self._out_gb.get(source, 0.0) + gb
        for slot in (source, target):
            self._moves[slot] = self._moves.get(slot, 0) + 1

    def end(self, source: int, target: int, gb: float) -> None:
        """It is over, whatever came of it."""
        self._in_gb[target] = max(self._in_gb.get(target, 0.0) - gb, 0.0)
        self._out_gb[source] = max(self._out_gb.get(source, 0.0) - gb, 0.0)
        for slot in (source, target):
            self._moves[slot] = max(self._moves.get(slot, 0) - 1, 0)

    def moves(self, slot: int) -> int:
        """Under way, from there and to there."""
        return self._moves.get(slot, 0)

    def read_us(self, source: int, targets: Slots, gb: float) -> Floats:
        """[len(targets)] Until so much is read, after all that is ahead of it."""
        out_gb = self._out_gb.get(source, 0.0)
        ahead = np.array([max(out_gb, self._in_gb.get(target, 0.0)) for target in targets.tolist()])
        rates = np.array([self.gbps(source, target) for target in targets.tolist()])
        found: Floats = self._setup_us + (gb + ahead) / rates * US_PER_GB
        return found

    def moving(self, targets: Slots) -> Floats:
        """[len(targets)] Moves under way at each."""
        return np.array([float(self._moves.get(target, 0)) for target in targets.tolist()])
