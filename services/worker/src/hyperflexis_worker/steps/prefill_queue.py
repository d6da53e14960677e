"""Who waits for a first token, in order of deadline, one column per number, so that a policy looks at all in one go."""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import StepTimeModel

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]


class Waiting(Protocol):
    """A request that has prompt left to prefill; begun, perhaps. Times in microseconds."""

    @property
    def number(self) -> int:
        """Its own among all that are here: breaks ties, in order of arrival."""
        ...

    @property
    def tier(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def arrival_us(self) -> float:
        """When the full request had been received."""
        ...

    @property
    def due_us(self) -> float:
        """When its next token is due: the first one, or, if it lost its blocks while decoding, the one after."""
        ...

    @property
    def tpot_us(self) -> float: ...
    @property
    def weight(self) -> float:
        """Worth of one attained request."""
        ...

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def to_compute(self) -> int:
        """Tokens left to prefill."""
        ...

    @property
    def computed(self) -> int:
        """Tokens before those."""
        ...

    @property
    def made(self) -> int:
        """Output tokens made so far. One that has some is never given up."""
        ...

    @property
    def max_tokens(self) -> int:
        """Output tokens at most."""
        ...


_NAMES = 64
"""Tiers, or tenants, that are known beside twice as many as there are requests."""
_DUE, _ARRIVAL, _TPOT, _WEIGHT, _PROMPT, _LEFT, _COMPUTED, _MADE, _MAX, _TIER, _TENANT = range(11)


class PrefillQueue:
    """Sorted by (due, number). Columns are views of the first `len` rows: valid until the queue changes."""

    def __init__(self) -> None:
        self.requests: list[Waiting] = []
        self.tiers: dict[str, int] = {}
        """Index of each tier that is here, and of some that were, in this order."""
        self.tenants: dict[str, int] = {}
        self._keys: list[tuple[float, int]] = []
        self._places: dict[int, tuple[float, int]] = {}
        self._table = np.zeros((11, 64))

    def __len__(self) -> int:
        return len(self.requests)

    def __contains__(self, request: Waiting) -> bool:
        return request.number in self._places

    def add(self, request: Waiting) -> None:
        count = len(self.requests)
        if count == self._table.shape[1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=1)
        tier = self._index(self.tiers, _TIER, request.tier)
        tenant = self._index(self.tenants, _TENANT, request.tenant)
        key = (request.due_us, request.number)
        at = bisect_left(self._keys, key)
        self._keys.insert(at, key)
        self._places[request.number] = key
        self.requests.insert(at, request)
        table = self._table
        if at < count:
            table[:, at + 1 : count + 1] = table[:, at:count].copy()
        table[:, at] = (
            request.due_us,
            request.arrival_us,
            request.tpot_us,
            request.weight,
            request.prompt_tokens,
            request.to_compute,
            request.computed,
            request.made,
            request.max_tokens,
            tier,
            tenant,
        )

    def _index(self, names: dict[str, int], field: int, name: str) -> int:
        found = names.get(name)
        if found is None:
            if len(names) >= _NAMES + 2 * len(self.requests):
                self._forget(names, field)
            found = names[name] = len(names)
        return found

    def _forget(self, names: dict[str, int], field: int) -> None:
        """Names of which nobody is here leave; the others' indices become smaller, in the same order."""
        column = self._column(field)
        used = np.unique(column)
        old = list(names)
        column[:] = np.searchsorted(used, column)
        names.clear()
        names.update((old[int(index)], at) for at, index in enumerate(used.tolist()))

    def remove(self, request: Waiting) -> None:
        """Raises KeyError where it is not here."""
        at = self._at(request)
        del self._places[request.number]
        del self._keys[at], self.requests[at]
        count = len(self.requests)
        if at < count:
            self._table[:, at:count] = self._table[:, at + 1 : count + 1].copy()

    def progressed(self, request: Waiting) -> None:
        """More, or less, of it is computed than before."""
        at = self._at(request)
        self._table[_LEFT, at] = request.to_compute
        self._table[_COMPUTED, at] = request.computed

    def _at(self, request: Waiting) -> int:
        return bisect_left(self._keys, self._places[request.number])

    def _column(self, field: int) -> Floats:
        return self._table[field, : len(self.requests)]

    @property
    def due_us(self) -> Floats:
        return self._column(_DUE)

    @property
    def arrival_us(self) -> Floats:
        return self._column(_ARRIVAL)

    @property
    def tpot_us(self) -> Floats:
        return self._column(_TPOT)

    @property
    def weight(self) -> Floats:
        return self._column(_WEIGHT)

    @property
    def prompt_tokens(self) -> Floats:
        return self._column(_PROMPT)

    @property
    def to_compute(self) -> Floats:
        return self._column(_LEFT)

    @property
    def computed(self) -> Floats:
        return self._column(_COMPUTED)

    @property
    def made(self) -> Floats:
        return self._column(_MADE)

    @property
    def max_tokens(self) -> Floats:
        return self._column(_MAX)

    def prefill_us(self, model: StepTimeModel) -> Floats:
        """[len] Marginal time of what is left of each."""
        return model.prefill_us(self.to_compute, self.computed)

    def output_left(self, lengths: OutputLengths) -> Floats:
        """[len] Output tokens that each is expected to make yet (OutputLengths.remaining)."""
        mean = np.array([lengths.mean(tier) for tier in self.tiers])[self.tier]
        return lengths.remaining_of(mean, self.made, self.max_tokens)

    @property
    def tier(self) -> Rows:
        """Indices as in `tiers`."""
        return self._column(_TIER).astype(np.intp)

    @property
    def tenant(self) -> Rows:
        """Indices as in `tenants`."""
        return self._column(_TENANT).astype(np.intp)
