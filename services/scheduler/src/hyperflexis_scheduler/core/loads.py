"""What every worker of a pool has to do, one column per number: a decision over a thousand workers is a few vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from hyperflexis_common.step_time import PLATEAU_TOKENS, StepTimeModel
from hyperflexis_common.turns import ALL_US, TURNS_US

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Slots = npt.NDArray[np.intp]

REQUESTS, QUEUED_TOKENS, SHARE, RUNNING, CONTEXT, KV_USED, KV_TOKENS = range(7)
C0, C1, C2, C3, C4, C5 = range(7, 13)
BASE, EACH = 13, 14
"""What a step costs beside its tokens where prefill fills it (those below the plateau are paid for then), and what one
of a decode costs. These and C0 to C5 are written together, by `model`."""
ROLE, TIGHTEST, PACE, ARRIVING, ARRIVING_TOKENS = range(15, 20)
"""ROLE: which one of below. TIGHTEST: TPOT of the tightest decode there, or on its way there, that steps can keep,
microseconds. PACE: actual over predicted step time. ARRIVING: decodes on their way there, and their context in tokens:
in no report yet."""
QUEUED_BEFORE = 20
"""Prefill that has its turn by the first of TURNS_US, then the others, and at last ..."""
QUEUED_US = QUEUED_BEFORE + len(TURNS_US)
"""... all that is queued."""
FIELDS = QUEUED_US + 1
_EDGES_US = np.array([*TURNS_US, ALL_US])
_WIDTHS_US = np.diff(_EDGES_US)
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

    def model(self, slot: int, model: StepTimeModel) -> None:
        """How long its steps take."""
        c0_us = model.c0_us + model.host_us
        base_us = max(c0_us + PLATEAU_TOKENS * (model.c1_us - model.c2_us), 0.0)
        linear = model.c1_us, model.c2_us, model.c3_us, model.c4_us, model.c5_us
        self._table[C0 : EACH + 1, slot] = (c0_us, *linear, base_us, model.c2_us + model.c5_us)

    def decodes(self, slot: int, tpots_us: Iterable[float]) -> None:
        """Of those there and on their way there. A TPOT shorter than a step with nothing in it is kept by nobody, and
        makes no steps shorter once it is late (the workers' own rule)."""
        empty_us = self.get(slot, PACE) * self.get(slot, C0)
        self.set(slot, TIGHTEST, min((tpot_us for tpot_us in tpots_us if tpot_us > empty_us), default=math.inf))

    def queue(self, slot: int, before_us: npt.ArrayLike) -> None:
        """[1 + len(TURNS_US)] What is queued by each turn, and in all; a number = all of it comes before everybody."""
        self._table[QUEUED_BEFORE : QUEUED_US + 1, slot] = before_us

    def prefill_us(self, tokens: float, among: Slots, cached: Floats | float = 0.0) -> Floats:
        """[len(among)] As LoadView's."""
        return self.view(among).prefill_us(tokens, cached)

    def view(self, among: Slots) -> LoadView:
        return LoadView(self._table, among)


class LoadView:
    """The columns of some workers, until the loads change; all [n]."""

    def __init__(self, table: Floats, among: Slots) -> None:
        self._table = table
        self._among = among
        count = len(among)
        # Slots in a row, as they are in a fleet that nobody has left, need not be copied.
        in_a_row = count and int(among[-1] - among[0]) == count - 1 and bool((among[1:] > among[:-1]).all())
        self._columns = table[:, among[0] : among[0] + count] if in_a_row else table.take(among, axis=1)

    def of(self, field: int) -> Floats:
        found: Floats = self._columns[field]
        return found

    def queued_before_us(self, turn_us: Floats) -> Floats:
        """What is queued on each and has its turn before `turn_us` [n] from now."""
        first, last = _EDGES_US[1:-1].searchsorted((turn_us.min(initial=np.inf), turn_us.max(initial=0.0)))
        if first == last:  # mostly: workers differ less than the edges do
            begin_us, width_us = _EDGES_US[first], _WIDTHS_US[first]
            low_us, high_us = self.of(QUEUED_BEFORE + first), self.of(QUEUED_BEFORE + first + 1)
        else:
            at = _EDGES_US[1:-1].searchsorted(turn_us)
            begin_us, width_us = _EDGES_US.take(at), _WIDTHS_US.take(at)
            stride = self._table.shape[1]
            place = (QUEUED_BEFORE + at) * stride + self._among
            low_us, high_us = self._table.take(place), self._table.take(place + stride)
        part = np.minimum(np.maximum((turn_us - begin_us) / width_us, 0.0), 1.0)
        found: Floats = low_us + part * (high_us - low_us)
        return found

    def prefill_us(self, tokens: float, cached: Floats | float = 0.0) -> Floats:
        """Marginal time of a prefill of so many tokens on each, of which it has so many already."""
        new = tokens - cached
        found: Floats = new * (self.of(C2) + self.of(C3) * (cached + new / 2))
        return found

    def decode_us(self, tokens: float, context: float) -> Floats:
        """Marginal time of so many decode steps of one request on each, from that context on."""
        found: Floats = tokens * (self.of(EACH) + self.of(C4) * (context + tokens / 2))
        return found


def counts_before(turn_us: float) -> npt.NDArray[np.bool_]:
    """[1 + len(TURNS_US)] In which numbers of a queue prefill counts whose turn comes so long from now."""
    counts: npt.NDArray[np.bool_] = turn_us <= _EDGES_US
    counts[-1] = True
    return counts
