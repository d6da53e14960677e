"""Links ahead of need: whoever may be handed requests can read from those who prefill for others, and prefixes from
any peer in a pool that is small; in a larger one whoever could have read one from a peer can do so the next time.

A link that is only made when the first request needs it costs that one tens of milliseconds. They are asked for as
workers join and roles change, a few at a time, and again where one failed or was lost.
"""

from __future__ import annotations

from collections.abc import Iterator

from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.fleet import Pool
from hyperflexis_scheduler.core.worker import WorkerState

PER_ROUND = 16
WANTED = 16
"""For the sake of prefixes a worker is told of so many links at most."""
AGAIN_US = 5_000_000
"""After an order that has not led to a link."""


class LinkOrders:
    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._ordered: dict[tuple[WorkerKey, WorkerKey], int] = {}
        """When each (reader, source) was last asked for."""

    def round(self, pool: Pool, now_us: int) -> None:
        """Call now and then; orders at most PER_ROUND links."""
        self._ordered = {pair: at_us for pair, at_us in self._ordered.items() if now_us - at_us < AGAIN_US}
        budget = PER_ROUND
        for reader, source in self._missing(pool):
            if budget == 0:
                return
            budget -= self._order(reader, source, now_us)

    @staticmethod
    def up(reader: WorkerState, source: WorkerState) -> bool:
        """There is a link to this life of it."""
        link = reader.links.get(source.key.worker_id)
        return link is not None and bool(link.transport) and link.peer.incarnation == source.key.incarnation

    def want(self, reader: WorkerState, source: WorkerState, now_us: int) -> None:
        """It had something to read there, and no link."""
        if len(reader.links) < WANTED:
            self._order(reader, source, now_us)

    def _order(self, reader: WorkerState, source: WorkerState, now_us: int) -> bool:
        """False where that has been done a moment ago."""
        pair = (reader.key, source.key)
        if now_us - self._ordered.get(pair, -AGAIN_US) < AGAIN_US:
            return False
        self._ordered[pair] = now_us
        self._cell.command(reader, link=worker_session_pb2.LinkPeer(peer=source.ref()))
        return True

    def _missing(self, pool: Pool) -> Iterator[tuple[WorkerState, WorkerState]]:
        everybody = self._cell.rules.prefix_pulls and len(pool.at) <= WANTED + 1
        workers = [worker for worker in pool.workers.values() if worker.admits and worker.moves]
        sources = [worker for worker in workers if everybody or worker.hands_off]
        if not sources:
            return
        for reader in workers:
            if not everybody and not reader.decodes:
                continue
            for source in sources:
                if source is not reader and not self.up(reader, source):
                    yield reader, source
