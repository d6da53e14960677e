"""All workers: who is known under which id, who serves which model, and whose time is over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hyperflexis_common.attempt import WorkerKey
from hyperflexis_scheduler.core.worker import WorkerState


class Pool:
    """The workers of one model."""

    def __init__(self) -> None:
        self.workers: dict[WorkerKey, WorkerState] = {}
        self.eligible: list[WorkerState] = []
        """Those that may be given work now, in order of their ids."""
        self.min_context = 0
        """Least context length of the eligible ones."""
        self.max_context = 0
        """Largest context length of all; a worker that names none counts as unlimited."""
        self.ready_context = 0
        """The largest of the eligible ones."""
        self.hold_seen = False
        """Every held request has been looked at since the eligible workers last changed."""
        self.revoking = 0
        """Revokes for a better place that are not answered yet."""

    def resize(self) -> None:
        self.eligible = sorted((w for w in self.workers.values() if w.eligible), key=lambda worker: worker.key)
        self.min_context = min((_context(w) for w in self.eligible), default=0)
        self.ready_context = max((_context(w) for w in self.eligible), default=0)
        self.hold_seen = False
        self.max_context = max((_context(w) for w in self.workers.values()), default=0)


def _context(worker: WorkerState) -> int:
    return worker.capabilities.context_length or 2**63


class Fleet:
    """Workers by id and by session; one life per id."""

    def __init__(self, known: Iterable[WorkerKey], retired: Iterable[WorkerKey], retired_limit: int) -> None:
        self.by_id: dict[str, WorkerState] = {}
        self.by_session: dict[int, WorkerState] = {}
        self.pools: dict[str, Pool] = {}
        known = list(known)
        self.awaited: set[str] = {key.worker_id for key in known}
        """Workers that the leader before knew and whose Snapshot has not come."""
        self._retired: dict[WorkerKey, None] = dict.fromkeys(retired)
        self._retired_limit = retired_limit
        self._lives: dict[str, int] = {}
        """The newest incarnation of each id, kept after the worker has gone: a later one ends its time."""
        self.retirements = 0
        """Rises with each life whose time is over."""
        for key in known:
            self._lives[key.worker_id] = key.incarnation
        self.changed: dict[str, None] = {}
        """Worker ids whose entry routers have not been told of."""
        self.removed: list[WorkerKey] = []
        self.version = 0
        """Rises with every change that a watcher of the cluster wants to see at once."""

    def __iter__(self) -> Iterator[WorkerState]:
        return iter(list(self.by_id.values()))

    @property
    def retired(self) -> list[WorkerKey]:
        return list(self._retired)

    def is_retired(self, key: WorkerKey) -> bool:
        return key in self._retired

    def pool(self, model: str) -> Pool | None:
        return self.pools.get(model)

    def fingerprint_conflict(self, worker_id: str, model: str, fingerprint: bytes) -> bool:
        """Another live worker of the model computes different tokens."""
        pool = self.pools.get(model)
        others = (w for w in pool.workers.values() if w.key.worker_id != worker_id) if pool else iter(())
        other = next(others, None)
        return other is not None and other.fingerprint != fingerprint

    def add(self, worker: WorkerState) -> None:
        self._begins(worker.key)
        self.by_id[worker.key.worker_id] = worker
        self.pools.setdefault(worker.model, Pool()).workers[worker.key] = worker
        self.pools[worker.model].resize()
        self.announce(worker)

    def remove(self, worker: WorkerState, retire: bool) -> None:
        worker.gone = True
        del self.by_id[worker.key.worker_id]
        if worker.session is not None:
            self.by_session.pop(worker.session, None)
        if retire:
            self._retire(worker.key)
        self.refresh(worker)
        pool = self.pools[worker.model]
        del pool.workers[worker.key]
        if pool.workers:
            pool.resize()
        else:
            del self.pools[worker.model]
        self.changed.pop(worker.key.worker_id, None)
        self.removed.append(worker.key)
        self.version += 1

    def _begins(self, key: WorkerKey) -> None:
        """A new life of an id; the older one, gone long ago or only silent, is over for good."""
        older = self._lives.pop(key.worker_id, key.incarnation)
        self._lives[key.worker_id] = key.incarnation
        if len(self._lives) > self._retired_limit:
            del self._lives[next(iter(self._lives))]
        if older != key.incarnation:
            self._retire(WorkerKey(key.worker_id, older))

    def _retire(self, key: WorkerKey) -> None:
        self.retirements += key not in self._retired
        self._retired[key] = None
        if len(self._retired) > self._retired_limit:
            del self._retired[next(iter(self._retired))]

    def refresh(self, worker: WorkerState) -> bool:
        """Call after anything that may change whether the worker accepts work; True if it now does anew."""
        if worker.accepts == worker.eligible:
            return False
        worker.eligible = worker.accepts
        self.pools[worker.model].resize()
        self.version += 1
        return worker.eligible

    def announce(self, worker: WorkerState) -> None:
        """Its entry in the routers' lists changed."""
        self.changed[worker.key.worker_id] = None
        self.version += 1
