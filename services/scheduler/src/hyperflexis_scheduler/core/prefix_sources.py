"""What each candidate would have of a prompt: what it keeps itself, or reads from the peer that keeps most of it.

A read counts only where it is clearly quicker than to compute the same, and likely to come in the time that the
worker gives it. Engines look at their caches between two steps: that takes longer than the link, unless they are idle.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.dispatch_policy import Ask, Prospect
from hyperflexis_scheduler.core.fleet import Pool
from hyperflexis_scheduler.core.link_orders import LinkOrders
from hyperflexis_scheduler.core.links import US_PER_GB
from hyperflexis_scheduler.core.loads import QUEUED_US, RUNNING, SHARE, TIGHTEST, Floats, Slots
from hyperflexis_scheduler.core.request import RequestState
from hyperflexis_scheduler.core.step_share import LONGEST_US, StepShare
from hyperflexis_scheduler.core.worker import WorkerState

QUICKER = 0.5
"""Of the time that computing takes, what reading may take at most."""
LIMIT_US = 250_000
TTFT_SHARE = 0.125
"""A read is to take half as long at most as the worker waits for it (its own prefix_pulls.py)."""
READERS = 8
"""Of those that might read, so many are looked at: the ones that have least to do."""


class Prefixes(NamedTuple):
    """All [len(among)], in tokens and microseconds."""

    cached: Floats
    """What each is believed to keep; the last token of a prompt is always computed."""
    pulled: Floats
    """What it would read beside; 0 = it would not."""
    read_us: Floats
    """Until that is there."""
    most: int = 0
    """What the source keeps."""
    source: WorkerState | None = None
    """Who keeps more than somebody else does, by enough to read it."""


class Prefix(NamedTuple):
    """What the chosen worker has, and where it reads the rest, if it does."""

    cached: int = 0
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

    def look(self, state: RequestState, ask: Ask, pool: Pool, among: Slots, now_us: int) -> Prefixes | None:
        """None where nobody keeps anything of it."""
        fleet, rules = self._cell.fleet, self._cell.rules
        if not state.prefix_hashes or not pool.hash_block_tokens:
            return None
        slots = pool.admitting if rules.prefix_pulls else among
        blocks = fleet.prefixes.cached_blocks(state.prefix_hashes, slots)
        if blocks is None:
            return None
        tokens = np.minimum(blocks * pool.hash_block_tokens, state.prefill_tokens - 1)
        pulled, read_us = np.zeros(len(among)), np.zeros(len(among))
        if not rules.prefix_pulls:
            return Prefixes(tokens, pulled, read_us)
        cached = tokens[np.searchsorted(slots, among)]
        most = int(tokens.max())
        wanted = np.flatnonzero(most - cached >= rules.pull_tokens)
        source = self._source(pool, slots[tokens == most]) if len(wanted) else None
        if source is None:
            return Prefixes(cached, pulled, read_us)
        waits_us = Prospect(ask, fleet.loads.view(among[wanted])).waits_us
        soon = waits_us.argpartition(READERS)[:READERS] if len(wanted) > READERS else np.arange(len(wanted))
        for at, wait_us in zip(wanted[soon].tolist(), waits_us[soon].tolist(), strict=True):
            reader = pool.at[int(among[at])]
            if self._orders.up(reader, source):
                needed_us = self._read_us(state, source, reader, int(cached[at]), most, wait_us, now_us)
                if needed_us:
                    pulled[at], read_us[at] = most - cached[at], needed_us
        return Prefixes(cached, pulled, read_us, most, source)

    def settle(
        self, state: RequestState, ask: Ask, prefixes: Prefixes, at: int, reader: WorkerState, now_us: int
    ) -> Prefix:
        """For the one that was chosen, `at` in what was looked at: of it alone it is known exactly what it keeps."""
        source, most = prefixes.source, prefixes.most
        if source is None or reader is source:
            return Prefix(int(prefixes.cached[at]))
        blocks = self._cell.fleet.prefixes.blocks_of(reader.slot, state.prefix_hashes)
        cached = min(blocks * reader.capabilities.hash_block_tokens, most)
        if most - cached < self._cell.rules.pull_tokens or not reader.moves:
            return Prefix(cached)
        if not self._orders.up(reader, source):
            self._orders.want(reader, source, now_us)
            return Prefix(cached)
        [wait_us] = Prospect(ask, self._cell.fleet.loads.view(np.array([reader.slot]))).waits_us.tolist()
        read_us = self._read_us(state, source, reader, cached, most, wait_us, now_us)
        if not read_us:
            return Prefix(cached)
        gigabytes = (most - cached) * source.bytes_per_token / 1e9
        busy_us = gigabytes / self._cell.fleet.links.gbps(source.slot, reader.slot) * US_PER_GB
        for end in (source.slot, reader.slot):
            self._until_us[end] = max(self._until_us.get(end, 0.0), now_us) + busy_us
        return Prefix(cached, most - cached, read_us, worker_session_pb2.PrefixSource(worker=source.ref(), tokens=most))

    def _source(self, pool: Pool, slots: Slots) -> WorkerState | None:
        """Of these, the one whose reads are over first."""
        workers = [pool.at[slot] for slot in slots.tolist()]
        readable = [worker for worker in workers if worker.moves]
        return min(readable, key=lambda worker: self._until_us.get(worker.slot, 0.0), default=None)

    def _read_us(
        self,
        state: RequestState,
        source: WorkerState,
        reader: WorkerState,
        cached: int,
        most: int,
        wait_us: float,
        now_us: int,
    ) -> float:
        """Until the tokens between can be there, after the reads decided on before; 0 = that is no clear gain.
        `wait_us`: what it waits there for its turn anyway."""
        fleet, one = self._cell.fleet, np.array([reader.slot])
        until_us = max(self._until_us.get(end.slot, 0.0) for end in (source, reader))
        gigabytes = (most - cached) * source.bytes_per_token / 1e9
        link_us = max(until_us - now_us, 0.0) + float(fleet.links.read_us(source.slot, one, gigabytes)[0])
        # In the middle of a step each is asked what it has, in that of another the read is over; after that it begins.
        its_us, own_us = self._step_us(source), self._step_us(reader)
        read_us = max(its_us, own_us) / 2 + own_us + link_us
        share = fleet.loads.get(reader.slot, SHARE)
        delay_us = read_us - wait_us
        computed_us = float(fleet.loads.prefill_us(most, one, float(cached))[0])
        limit_us = min(TTFT_SHARE * (state.deadline_us - now_us), LIMIT_US)
        quicker = link_us <= QUICKER * computed_us and delay_us <= QUICKER * computed_us / share
        return read_us if quicker and read_us <= limit_us else 0.0

    def _step_us(self, worker: WorkerState) -> float:
        """How long its engine's steps are now, about: decodes, and as much of what is queued as the tightest allows."""
        loads, slot = self._cell.fleet.loads, worker.slot
        decodes_us = float(StepShare(loads.view(np.array([slot]))).step_us()[0]) if loads.get(slot, RUNNING) else 0.0
        longest_us = min(loads.get(slot, TIGHTEST), LONGEST_US)
        return decodes_us + min(loads.get(slot, QUEUED_US), max(longest_us - decodes_us, 0.0))
