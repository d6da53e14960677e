"""Unstarted work moves when a better place appears: off workers that leave, and to workers that idle."""

from __future__ import annotations

from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.fleet import Pool
from hyperflexis_scheduler.core.grants import Grants
from hyperflexis_scheduler.core.loads import QUEUED_US, REQUESTS, SHARE
from hyperflexis_scheduler.core.request import RequestState
from hyperflexis_scheduler.core.worker import WorkerState


class Rebalance:
    """Revokes; the answer REVOKED places anew. At most `revokes_per_round` each `revoke_period_us`."""

    def __init__(self, cell: Cell, grants: Grants) -> None:
        self._cell = cell
        self._grants = grants
        self._next_us = 0

    def round(self, now_us: int) -> None:
        if now_us < self._next_us:
            return
        rules, loads = self._cell.rules, self._cell.fleet.loads
        self._next_us = now_us + rules.revoke_period_us
        budget = rules.revokes_per_round
        for pool in self._cell.fleet.pools.values():
            if not pool.eligible:
                continue
            budget -= self._empty_leaving(pool, budget, now_us)
            idle = int((loads.of(REQUESTS, pool.slots) == 0).sum()) - pool.revoking
            if idle > 0:
                budget -= self._feed_idle(pool, min(idle, budget), now_us)

    def _empty_leaving(self, pool: Pool, budget: int, now_us: int) -> int:
        """While the worker has no other place to send it to, its work stays: it may still get done there."""
        revoked = 0
        for worker in pool.workers.values():
            if not worker.leaving or not worker.connected:
                continue
            for state in list(worker.revocable.values()):
                if revoked >= budget:
                    return revoked
                if not state.revoking:
                    self._grants.revoke(state, "worker_leaves", now_us)
                    revoked += 1
        return revoked

    def _feed_idle(self, pool: Pool, budget: int, now_us: int) -> int:
        """From the workers with the most queued work, what they would do last."""
        if budget <= 0:
            return 0
        busy = [worker for worker in pool.eligible if worker.revocable and len(worker.attempts) > 1]
        loads = self._cell.fleet.loads
        busy.sort(key=lambda worker: loads.get(worker.slot, QUEUED_US) / loads.get(worker.slot, SHARE), reverse=True)
        revoked = 0
        for worker in busy[:budget]:
            state = self._last(worker)
            if state is not None:
                state.moves += 1
                self._grants.revoke(state, "idle_worker", now_us)
                revoked += 1
        return revoked

    def _last(self, worker: WorkerState) -> RequestState | None:
        """The newest unstarted request here that may still move; only a few are looked at."""
        for _, request_id in zip(range(8), reversed(worker.revocable), strict=False):
            state = worker.revocable[request_id]
            if state.known and not state.revoking and state.moves < self._cell.rules.max_moves:
                return state
        return None
