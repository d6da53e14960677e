"""Roles that follow the load, where the settings ask for it: the decisions of core.roles, carried out."""

from __future__ import annotations

import numpy as np

from hyperflexis.common.v1 import capability_pb2
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.fleet import Pool
from hyperflexis_scheduler.core.roles import RoleController

ROLES = {
    columns.MIXED: capability_pb2.ROLE_MIXED,
    columns.PREFILL: capability_pb2.ROLE_PREFILL,
    columns.DECODE: capability_pb2.ROLE_DECODE,
}


class RoleOrders:
    """A controller for each pool. Workers whose caches do not move keep their roles: they could hand nothing off."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._controllers: dict[str, RoleController] = {}

    def round(self, model: str, pool: Pool, now_us: int) -> None:
        by_slot = {w.slot: w for w in pool.workers.values() if w.admits and w.moves}
        among = np.array(sorted(by_slot), np.intp)
        if len(among) < 2:
            return
        controller = self._controllers.setdefault(model, RoleController())
        change = controller.round(now_us, self._cell.fleet.loads, among)
        for slot, role in change.roles.items():
            self._cell.set_role(by_slot[slot], ROLES[role])
            self._cell.tally.flips[change.reason] += 1
