"""What each candidate would have of a prompt: what it keeps itself, or reads from the peer that keeps most of it.

A read counts only where it is clearly quicker than to compute the same: it may fail, and is delayed by what nobody
sees from here, the step that an engine is in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.fleet import Pool
from hyperflexis_scheduler.core.link_orders import LinkOrders
from hyperflexis_scheduler.core.loads import Floats, Slots
from hyperflexis_scheduler.core.request import RequestState
from hyperflexis_scheduler.core.worker import WorkerState

QUICKER = 0.5
"""Of the time that computing takes, what reading may take at most."""


class Prefixes(NamedTuple):
    """All [len(among)], in tokens and microseconds."""

    among: Slots
    cached: Floats
    """What each is believed to keep; the last token of a prompt is always computed."""
    pulled: Floats
    """What it would read beside; 0 = it would not."""
    read_us: Floats
    """Until that is there."""
    source: WorkerState | None = None
    """Who keeps more than somebody else does, by enough to read it."""


class Prefix(NamedTuple):
    """What the chosen worker has, and where it reads the rest, if it does."""

    cached: int
    pulled: int = 0
    read_us: float = 0.0
    source: worker_session_pb2.PrefixSource | None = None

    @property
    def numbers(self) -> dict[str, float]:
        """For its decision."""
        found = {"cached_tokens": self.cached, "pulled_tokens": self.pulled, "read_us": self.read_us}
        return {name: number for name, number in found.items() if number}


class PrefixSources:
    def __init__(self, cell: Cell, orders: LinkOrders) -> None:
        self._cell = cell
        self._orders = orders
        self._until_us: dict[int, float] = {}
        """By slot: when the reads out of it, or into it, that were decided on will be over."""

    def look(self, state: RequestState, pool: Pool, among: Slots, now_us: int) -> Prefixes | None:
        """None where nobody keeps anything of it."""
        fleet, rules = self._cell.fleet, self._cell.rules
        block_tokens = next(iter(pool.workers.values())).capabilities.hash_block_tokens
        if not state.prefix_hashes or not block_tokens:
            return None
        slots = pool.admitting if rules.prefix_pulls else among
        blocks = fleet.prefixes.cached_blocks(state.prefix_hashes, slots)
        if blocks is None:
            return None
        tokens = np.minimum(blocks * block_tokens, state.prefill_tokens - 1)
        none = np.zeros(len(among))
        if not rules.prefix_pulls:
            return Prefixes(among, tokens, none, none)
        cached = tokens[np.searchsorted(slots, among)]
        most = tokens.max()
        wanted = most - cached >= rules.pull_tokens
        source = self._source(pool, slots[tokens == most]) if wanted.any() else None
        if source is None:
            return Prefixes(among, cached, none, none)
        readers = (pool.at[slot] for slot in among.tolist())
        linked = np.array([bool(w) and self._orders.up(one, source) for w, one in zip(wanted, readers, strict=True)])
        read_us = self._read_us(source, among, most - cached, now_us)
        computed_us = fleet.loads.prefill_us(most, among, cached)
        pulls = linked & (read_us <= QUICKER * computed_us)
        return Prefixes(among, cached, np.where(pulls, most - cached, 0), np.where(pulls, read_us, 0), source)

    def settle(self, state: RequestState, pool: Pool, prefixes: Prefixes, slot: int, now_us: int) -> Prefix:
        """For the one that was chosen: of it alone it is known exactly what it keeps."""
        at = int(np.flatnonzero(prefixes.among == slot)[0])
        cached, pulled, read_us = (float(column[at]) for column in (prefixes.cached, prefixes.pulled, prefixes.read_us))
        reader, source, rules = pool.at[slot], prefixes.source, self._cell.rules
        if source is None or reader is source:
            return Prefix(int(cached))
        if not pulled:
            if reader.moves and not self._orders.up(reader, source):
                self._orders.want(reader, source, now_us)
            return Prefix(int(cached))
        most = cached + pulled
        blocks = self._cell.fleet.prefixes.blocks_of(slot, state.prefix_hashes)
        cached = min(float(blocks * reader.capabilities.hash_block_tokens), most)
        if most - cached < rules.pull_tokens:
            return Prefix(int(cached))
        gigabytes = (most - cached) * source.bytes_per_token / 1e9
        busy_us = gigabytes / self._cell.fleet.links.gbps(source.slot, slot) * 1e6
        for end in (source.slot, slot):
            self._until_us[end] = max(self._until_us.get(end, 0.0), now_us) + busy_us
        named = worker_session_pb2.PrefixSource(worker=source.ref(), tokens=int(most))
        return Prefix(int(cached), int(most - cached), read_us, named)

    def _source(self, pool: Pool, slots: Slots) -> WorkerState | None:
        """Of these, the one whose reads are over first."""
        workers = [pool.at[slot] for slot in slots.tolist()]
        readable = [worker for worker in workers if worker.moves]
        return min(readable, key=lambda worker: self._until_us.get(worker.slot, 0.0), default=None)

    def _read_us(self, source: WorkerState, among: Slots, tokens: Floats, now_us: int) -> Floats:
        """After the reads that were decided on before."""
        out_us = self._until_us.get(source.slot, 0.0)
        ahead_us = np.array([max(self._until_us.get(slot, 0.0), out_us) - now_us for slot in among.tolist()])
        gigabytes = tokens * source.bytes_per_token / 1e9
        found: Floats = np.maximum(ahead_us, 0) + self._cell.fleet.links.read_us(source.slot, among, gigabytes)
        return found
