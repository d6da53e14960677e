"""Which running requests are to move, and where: the decisions of decode_placement and migration, carried out.

A request that was prefilled on a PREFILL worker is given its place to decode with its first token. Without one it
decodes on, and is looked at again in each round with all else that should move.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hyperflexis.common.v1 import movement_pb2
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.decode_placement import Decode, DecodePlacement
from hyperflexis_scheduler.core.fleet import Pool
from hyperflexis_scheduler.core.link_orders import LinkOrders
from hyperflexis_scheduler.core.migration import Migration, MigrationRules, Running
from hyperflexis_scheduler.core.moves import Moves
from hyperflexis_scheduler.core.request import RequestState
from hyperflexis_scheduler.core.role_orders import RoleOrders
from hyperflexis_scheduler.core.worker import WorkerState

ROUND_US = 100_000
LOOKED_AT = 64
"""Running requests of one worker that a round looks at."""


class Migrator:
    def __init__(self, cell: Cell, moves: Moves, links: LinkOrders) -> None:
        self._cell = cell
        self._moves = moves
        self._next_us = 0
        self._rules = MigrationRules()
        self._links = links
        self._roles = RoleOrders(cell)

    def first_token(self, state: RequestState, now_us: int) -> None:
        """It has been prefilled, and decodes where that was."""
        worker = state.worker
        if worker is None or not worker.hands_off or state.move is not None or not state.known:
            return
        pool = self._cell.fleet.pools[worker.model]
        fleet, placement = self._cell.fleet, DecodePlacement(None, worker.bytes_per_token)
        placed = placement.choose(self._decode(state), worker.slot, fleet.loads, pool.decoders, fleet.links)
        if placed.slot is not None:
            self._begin(state, pool, placed.slot, "role", placed.numbers, now_us)
        else:
            state.note("stay", placed.reason, now_us, placed.numbers)

    def round(self, now_us: int) -> None:
        if now_us < self._next_us:
            return
        self._next_us = now_us + ROUND_US
        for model, pool in self._cell.fleet.pools.items():
            if self._cell.rules.adaptive_roles:
                self._roles.round(model, pool, now_us)
            if len(pool.workers) > 1 and len(pool.decoders):
                self._links.round(pool, now_us)
                self._round(pool, now_us)

    def links_reported(self, worker: WorkerState, links: Iterable[movement_pb2.LinkStatus]) -> None:
        """What a worker says of its links: it reads from its peers."""
        fleet = self._cell.fleet
        worker.links = {link.peer.worker_id: link for link in links}
        for worker_id, link in worker.links.items():
            peer = fleet.by_id.get(worker_id)
            if peer is not None and link.gigabytes_per_s > 0:
                fleet.links.measured(peer.slot, worker.slot, link.gigabytes_per_s)

    def _round(self, pool: Pool, now_us: int) -> None:
        fleet = self._cell.fleet
        sources = self._sources(pool)
        if not sources:
            return
        running = {worker.slot: self._running(worker) for worker in sources}
        leaving = [worker.slot for worker in sources if worker.leaving]
        migration = Migration(DecodePlacement(None, sources[0].bytes_per_token), self._rules)
        for move in migration.round(fleet.loads, pool.decoders, running, fleet.links, leaving):
            state = self._cell.book.get(str(move.key))
            assert state is not None
            self._begin(state, pool, move.target, move.reason, move.numbers, now_us)

    def _sources(self, pool: Pool) -> list[WorkerState]:
        """Those that are to be rid of their decodes."""
        workers = pool.workers.values()
        return [w for w in workers if w.decoding and w.connected and w.moves and (w.leaving or w.hands_off)]

    def _running(self, worker: WorkerState) -> Sequence[Running]:
        found = []
        for request_id in worker.decoding:
            state = worker.attempts[request_id]
            if state.move is None and state.known and not state.done:
                found.append(Running(request_id, self._decode(state)))
                if len(found) == LOOKED_AT:
                    break
        return found

    def _decode(self, state: RequestState) -> Decode:
        growth = min(self._cell.tally.output_tokens(state.slo.tier), float(state.max_tokens))
        return Decode(float(state.prefill_tokens), growth, float(state.tpot_us))

    def _begin(
        self, state: RequestState, pool: Pool, slot: int, reason: str, numbers: Mapping[str, float], now_us: int
    ) -> None:
        target = next(worker for worker in pool.workers.values() if worker.slot == slot)
        if not self._moves.obstacle(state, target):
            self._moves.begin(state, target, reason, numbers, now_us)
