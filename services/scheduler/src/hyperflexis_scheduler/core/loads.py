"""What every worker of a pool has to do, one column per number: a decision over a thousand workers is a few vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Slots = npt.NDArray[np.intp]

REQUESTS, QUEUED_TOKENS, QUEUED_US, SHARE, RUNNING, CONTEXT, KV_USED, KV_TOKENS = range(8)
C0, C1, C2, C3, C4, C5 = range(8, 14)
ROLE, TIGHTEST, PACE, ARRIVING, ARRIVING_TOKENS = range(14, 19)
"""ROLE: which one of below. TIGHTEST: TPOT of the tightest decode there or on its way there, microseconds. PACE: actual
over predicted step time. ARRIVING: decodes on their way there, and their context in tokens: in no report yet."""
FIELDS = 19
MIXED, PREFILL, DECODE = range(3)
"""What a worker may be sent; its engine runs the same steps whatever it is."""


class WorkerLoads:
    """A slot for each worker. Requests and queues are those reported plus what was sent since."""

    def __init__(self, capacity: int = 16) -> None:
        self._table = np.zeros((FIELDS, capacity))
        self._free = list(range(capacity - 1, -1, -1))

    def open(self) -> int:
        """A slot, all zero but a prefill share and a pace of one; MIXED, and without a decode that is tight."""
        if not self._free:
            old = self._table.shape[1]
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
            self._free = list(range(2 * old - 1, old - 1, -1))
        slot = self._free.pop()
        self._table[:, slot] = 0.0
        self._table[[SHARE, PACE], slot] = 1.0
        self._table[TIGHTEST, slot] = np.inf
        return slot

    def copy(self) -> WorkerLoads:
        """For a decision of several parts, each of which counts on those before it."""
        other = WorkerLoads(0)
        other._table, other._free = self._table.copy(), list(self._free)
        return other

    def close(self, slot: int) -> None:
        self._free.append(slot)

    def column(self, field: int) -> Floats:
        """[capacity]; written to by slot."""
        found: Floats = self._table[field]
        return found

    def set(self, slot: int, field: int, value: float) -> None:
        self._table[field, slot] = value

    def add(self, slot: int, field: int, value: float) -> None:
        self._table[field, slot] += value

    def get(self, slot: int, field: int) -> float:
        return float(self._table[field, slot])

    def of(self, field: int, among: Slots) -> Floats:
        """[len(among)]"""
        found: Floats = self._table[field].take(among)
        return found

    def prefill_us(self, tokens: float, among: Slots, cached: Floats | float = 0.0) -> Floats:
        """[len(among)] Marginal time of a prefill of so many tokens on each, of which it has so many already."""
        new = tokens - cached
        found: Floats = new * (self.of(C2, among) + self.of(C3, among) * (cached + new / 2))
        return found
