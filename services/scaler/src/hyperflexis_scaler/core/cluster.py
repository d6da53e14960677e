"""The cluster as the scheduler's leader last showed it."""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2

FRESH_US = 4_000_000
"""The leader speaks every second; a view older than this proves nothing about who is missing."""

EXTERNALS_LIMIT = 10_000


class Cluster:
    """Workers by id, and how long those that are not ours have been missed."""

    def __init__(self, cell: str, external_us: int) -> None:
        self._cell = cell
        self._external_us = external_us
        self._epoch = 0
        self._seen_us: int | None = None
        self.first_seen_us: int | None = None
        self.workers: dict[str, scheduler_service_pb2.ClusterWorker] = {}
        self._externals: dict[str, tuple[str, int]] = {}

    def observe(self, now_us: int, view: scheduler_service_pb2.WatchClusterResponse) -> None:
        """Takes a view over, unless it comes from a leader that another has replaced."""
        if view.fence.epoch < self._epoch:
            return
        self._epoch = view.fence.epoch
        self._seen_us = now_us
        if self.first_seen_us is None:
            self.first_seen_us = now_us
        self.workers = {worker.identity.worker_id: worker for worker in view.workers}
        for worker_id, worker in self.workers.items():
            if self._is_external(worker) and serves(worker) and len(self._externals) < EXTERNALS_LIMIT:
                self._externals[worker_id] = (worker.model, now_us)

    def fresh(self, now_us: int) -> bool:
        return self._seen_us is not None and now_us - self._seen_us <= FRESH_US

    def externals(self, now_us: int, model: str) -> list[str]:
        """Ids of the workers of a model that somebody else runs and that serve, or did a moment ago.

        While the view is stale nobody is missed: the scheduler being away does not mean that they are.
        """
        if self.fresh(now_us):
            limit_us = now_us - self._external_us
            self._externals = {key: entry for key, entry in self._externals.items() if entry[1] >= limit_us}
        elif self._seen_us is not None:
            self._externals = {key: (entry[0], now_us) for key, entry in self._externals.items()}
        return sorted(key for key, (of_model, _) in self._externals.items() if of_model == model)

    def _is_external(self, worker: scheduler_service_pb2.ClusterWorker) -> bool:
        return worker.tags.get("cell") != self._cell or not worker.tags.get("action_id")


def serves(worker: scheduler_service_pb2.ClusterWorker) -> bool:
    """Serves, or will when it has loaded."""
    going = (capability_pb2.READINESS_LOADING, capability_pb2.READINESS_READY)
    return worker.readiness in going and not worker.hung and not worker.disconnected


def drained(worker: scheduler_service_pb2.ClusterWorker) -> bool:
    """Takes nothing new and holds nothing that anybody still waits for."""
    load = worker.load
    empty = not (load.waiting or load.running or load.queued_prefill_tokens or load.retained_finished)
    return worker.readiness == capability_pb2.READINESS_DRAINING and empty


def burden(worker: scheduler_service_pb2.ClusterWorker | None) -> int:
    """Requests that a removal would disturb."""
    return worker.load.waiting + worker.load.running if worker is not None else 0
