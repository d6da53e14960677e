"""The worker list, as the scheduler last told it."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis_common.attempt import WorkerKey


@dataclass(frozen=True, slots=True)
class ListedWorker:
    key: WorkerKey
    address: str
    model: str
    ready: bool
    hash_block_tokens: int
    sampling_features: frozenset[str]


class WorkerBook:
    """Who is listed. `apply` says who came, moved or left."""

    def __init__(self) -> None:
        self._workers: dict[WorkerKey, ListedWorker] = {}

    def apply(self, message: router_session_pb2.WorkerList) -> tuple[list[ListedWorker], list[WorkerKey]]:
        """(workers new or at a new address, workers gone)."""
        told = [_listed(entry) for entry in message.workers]
        gone = [WorkerKey.of(identity) for identity in message.removed]
        if message.full:
            named = {worker.key for worker in told}
            gone = [key for key in self._workers if key not in named]
        came = []
        for worker in told:
            known = self._workers.get(worker.key)
            if known is None or known.address != worker.address:
                came.append(worker)
            self._workers[worker.key] = worker
        return came, [key for key in gone if self._workers.pop(key, None) is not None]

    def address(self, key: WorkerKey) -> str:
        """Empty where the worker is not listed."""
        worker = self._workers.get(key)
        return worker.address if worker else ""

    def ready(self, model: str) -> int:
        return sum(worker.ready for worker in self._workers.values() if worker.model == model)

    def hash_block_tokens(self, model: str) -> int:
        """Block size of the model's prefix hashes; 0 while no worker of it is known to keep a prefix cache."""
        sizes = (worker.hash_block_tokens for worker in self._workers.values() if worker.model == model)
        return next((size for size in sizes if size), 0)

    def sampling_features(self, model: str) -> frozenset[str] | None:
        """SamplingParams fields that every worker of the model honours; None while none is known."""
        told = [worker.sampling_features for worker in self._workers.values() if worker.model == model]
        return frozenset.intersection(*told) if told else None


def _listed(entry: router_session_pb2.WorkerEntry) -> ListedWorker:
    ready = entry.readiness == capability_pb2.READINESS_READY
    return ListedWorker(
        WorkerKey.of(entry.identity),
        entry.address,
        entry.model,
        ready,
        entry.hash_block_tokens,
        frozenset(entry.sampling_features),
    )
