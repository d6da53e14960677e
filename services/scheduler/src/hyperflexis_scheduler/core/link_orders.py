"""Links ahead of need: whoever may be handed requests can read from those who prefill for others.

A link that is only made when the first request needs it costs that one tens of milliseconds. They are asked for as
workers join and roles change, a few at a time, and again where one failed or was lost.
"""

from __future__ import annotations

from collections.abc import Iterator

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.fleet import Pool
from hyperflexis_scheduler.core.worker import WorkerState

PER_ROUND = 16
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
            if (reader.key, source.key) in self._ordered:
                continue
            budget -= 1
            self._ordered[reader.key, source.key] = now_us
            peer = movement_pb2.WorkerRef(
                worker_id=source.key.worker_id, incarnation=source.key.incarnation, address=source.address
            )
            self._cell.command(reader, link=worker_session_pb2.LinkPeer(peer=peer))

    def _missing(self, pool: Pool) -> Iterator[tuple[WorkerState, WorkerState]]:
        sources = [worker for worker in pool.workers.values() if worker.hands_off and worker.admits and worker.moves]
        if not sources:
            return
        for reader in pool.workers.values():
            if not reader.decodes:
                continue
            for source in sources:
                link = reader.links.get(source.key.worker_id)
                up = link is not None and link.transport and link.peer.incarnation == source.key.incarnation
                if source is not reader and not up:
                    yield reader, source
