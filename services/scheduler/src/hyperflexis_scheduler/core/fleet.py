"""All workers: who is here under which id, and who serves which model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from hyperflexis_common.attempt import WorkerKey
from hyperflexis_scheduler.core.fingerprints import Fingerprints, Verdict
from hyperflexis_scheduler.core.links import Links
from hyperflexis_scheduler.core.lives import Lives
from hyperflexis_scheduler.core.loads import Slots, WorkerLoads
from hyperflexis_scheduler.core.memory import WorkerRecord
from hyperflexis_scheduler.core.prefix_index import PrefixIndex
from hyperflexis_scheduler.core.rules import Rules
from hyperflexis_scheduler.core.worker import WorkerState


class Pool:
    """The workers of one model."""

    def __init__(self) -> None:
        self.workers: dict[WorkerKey, WorkerState] = {}
        self.eligible: list[WorkerState] = []
        """Those that may be given requests now, in order of their ids: by their roles, or, where no role admits any,
        whoever serves."""
        self.slots: Slots = np.empty(0, np.intp)
        """Theirs in the loads, in the same order."""
        self.decoders: Slots = np.empty(0, np.intp)
        """Of those that may be given what others have prefilled."""
        self.hands_off = False
        """Somebody here only prefills."""
        self.at: dict[int, WorkerState] = {}
        """By slot."""
        self.admitting: Slots = np.empty(0, np.intp)
        """Those slots, in order: of all that may be given anything."""
        self.min_context = 0
        """Least context length of the eligible ones."""
        self.max_context = 0
        """Largest context length of all; a worker that names none counts as unlimited."""
        self.ready_context = 0
        """The largest of the eligible ones."""
        self.hash_block_tokens = 0
        """By which prefixes are named here; 0 = nobody keeps any."""
        self.hold_seen = False
        """Every held request has been looked at since the eligible workers last changed."""
        self.revoking = 0
        """Revokes for a better place that are not answered yet."""

    def resize(self) -> None:
        eligible = [w for w in self.workers.values() if w.accepts] or [w for w in self.workers.values() if w.admits]
        self.eligible = sorted(eligible, key=lambda worker: worker.key)
        decoders = sorted((w for w in self.workers.values() if w.decodes), key=lambda worker: worker.key)
        self.decoders = np.array([worker.slot for worker in decoders], np.intp)
        self._decoder_contexts = np.array([_context(worker) for worker in decoders])
        self.slots = np.array([worker.slot for worker in self.eligible], np.intp)
        self.hands_off = len(decoders) > 0 and any(w.hands_off and w.admits for w in self.workers.values())
        self.at = {worker.slot: worker for worker in (*self.eligible, *decoders)}
        self.admitting = np.array(sorted(self.at), np.intp)
        self._contexts = np.array([_context(worker) for worker in self.eligible])
        self.min_context = min((_context(w) for w in self.eligible), default=0)
        self.ready_context = max((_context(w) for w in self.eligible), default=0)
        self.hold_seen = False
        hashed = (worker.capabilities.hash_block_tokens for worker in self.workers.values())
        self.hash_block_tokens = max(hashed, default=0)
        self.max_context = max((_context(w) for w in self.workers.values()), default=0)

    def able_decoders(self, context_tokens: int) -> Slots:
        """Of the decoders that have the context for so many tokens."""
        return self.decoders[self._decoder_contexts >= context_tokens]

    def able(self, context_tokens: int) -> Slots:
        """Of the eligible ones that have the context for so many tokens."""
        return self.slots if context_tokens <= self.min_context else self.slots[self._contexts >= context_tokens]


def _context(worker: WorkerState) -> int:
    return worker.capabilities.context_length or 2**62


class Fleet:
    """Workers by id and by session; one life per id."""

    def __init__(self, rules: Rules, now_us: int) -> None:
        self._known_us = rules.known_us
        self.loads = WorkerLoads()
        """A row for each worker of `by_id`."""
        self.links = Links()
        """Between the workers of those rows."""
        self.prefixes = PrefixIndex()
        """Of those rows."""
        self.by_id: dict[str, WorkerState] = {}
        self.by_session: dict[int, WorkerState] = {}
        self.pools: dict[str, Pool] = {}
        self.awaited: set[str] = set()
        """Workers that the leader before had and whose Snapshot has not come."""
        self.lives = Lives(rules.lives_limit, rules.remembered_us)
        self.fingerprints = Fingerprints(now_us + rules.known_us)
        self.changed: dict[str, None] = {}
        """Worker ids whose entry routers have not been told of."""
        self.removed: list[WorkerKey] = []
        self.version = 0
        """Rises with every change that a watcher of the cluster wants to see at once."""

    def __iter__(self) -> Iterator[WorkerState]:
        return iter(list(self.by_id.values()))

    def learn(self, records: Iterable[WorkerRecord], now_us: int) -> list[WorkerState]:
        """What the leader before knew. Returns the workers here that its records of their model speak against."""
        oldest_first = sorted(records, key=lambda record: -record.age_us)
        for record in oldest_first:
            self.lives.learn(record, now_us)
        known = [record for record in oldest_first if record.age_us <= self._known_us]
        self.fingerprints.learn(known)
        self.awaited = {record.key.worker_id for record in known} - {w.key.worker_id for w in self if w.connected}
        return [w for w in self if self.fingerprints.contradicts(w.model, w.fingerprint)]

    def record(self, worker: WorkerState) -> WorkerRecord:
        retired = self.lives.retired(worker.key.worker_id)
        return WorkerRecord(worker.key, worker.address, worker.model, worker.fingerprint, retired)

    def pool(self, model: str) -> Pool | None:
        return self.pools.get(model)

    def fits(self, worker_id: str, model: str, fingerprint: bytes, now_us: int) -> Verdict:
        """Does it compute the same tokens as the other workers of its model?"""
        pool = self.pools.get(model)
        others = (w for w in pool.workers.values() if w.key.worker_id != worker_id) if pool else iter(())
        other = next(others, None)
        return self.fingerprints.verdict(model, fingerprint, other.fingerprint if other else None, now_us)

    def add(self, worker: WorkerState) -> None:
        self.by_id[worker.key.worker_id] = worker
        self.pools.setdefault(worker.model, Pool()).workers[worker.key] = worker
        self.pools[worker.model].resize()
        self.announce(worker)

    def remove(self, worker: WorkerState, now_us: int) -> None:
        worker.leave()
        self.links.forget(worker.slot)
        self.prefixes.forget(worker.slot)
        self.lives.left(worker.key.worker_id, now_us)
        del self.by_id[worker.key.worker_id]
        if worker.session is not None:
            self.by_session.pop(worker.session, None)
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

    def refresh(self, worker: WorkerState) -> bool:
        """Call after anything that may change whether the worker accepts work; True if it now does anew."""
        standing = (worker.admits, worker.accepts, worker.decodes)
        if standing == worker.standing:
            return False
        worker.standing = standing
        worker.eligible = worker.accepts
        self.pools[worker.model].resize()
        self.version += 1
        return worker.eligible

    def announce(self, worker: WorkerState) -> None:
        """Its entry in the routers' lists changed."""
        self.changed[worker.key.worker_id] = None
        self.version += 1
