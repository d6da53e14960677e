"""The lives of worker ids: which process has each, which had it before, and whose time is over."""

from __future__ import annotations

from hyperflexis_common.attempt import WorkerKey
from hyperflexis_scheduler.core.memory import WorkerRecord

RETIRED_PER_ID = 64


class Lives:
    """A life is retired when another one takes its id, also where it had long been silent: a process that was
    stopped and continues must not drive out the one that replaced it. Ids that nobody has are remembered for
    `keep_us`, the newest `limit` of them."""

    def __init__(self, limit: int, keep_us: int) -> None:
        self._limit = limit
        self._keep_us = keep_us
        self._last: dict[str, int] = {}
        """The incarnation that has an id, or had it last."""
        self._retired: dict[str, dict[int, None]] = {}
        self._left_us: dict[str, int] = {}
        """Ids that nobody has now, in the order in which they are forgotten."""

    def __len__(self) -> int:
        return len(self._last)

    def is_retired(self, key: WorkerKey) -> bool:
        return key.incarnation in self._retired.get(key.worker_id, ())

    def retired(self, worker_id: str) -> tuple[int, ...]:
        return tuple(self._retired.get(worker_id, ()))

    def joined(self, key: WorkerKey) -> bool:
        """This life has the id from now on, and another one that had it is retired. True if that is news."""
        self._left_us.pop(key.worker_id, None)
        last = self._last.get(key.worker_id)
        self._last[key.worker_id] = key.incarnation
        if last is not None and last != key.incarnation:
            self._retire(key.worker_id, last)
        return last != key.incarnation

    def left(self, worker_id: str, at_us: int) -> None:
        """Nobody has the id from now on; its last life may still come back."""
        self._left_us.pop(worker_id, None)
        self._left_us[worker_id] = at_us
        if len(self._left_us) > self._limit:
            self._forget(next(iter(self._left_us)))

    def learn(self, record: WorkerRecord, now_us: int) -> None:
        """What an older leader knew. Where this one knows a later life already, the recorded one is over, unless that
        later one came back from the dead before this was known."""
        worker_id, recorded = record.key
        last = self._last.get(worker_id)
        for incarnation in record.retired:
            if incarnation != last:
                self._retire(worker_id, incarnation)
        if last is None:
            self._last[worker_id] = recorded
            self.left(worker_id, now_us - record.age_us)
        elif last != recorded and last not in record.retired:
            self._retire(worker_id, recorded)

    def expire(self, now_us: int) -> None:
        while self._left_us:
            worker_id, left_us = next(iter(self._left_us.items()))
            if now_us - left_us < self._keep_us:
                return
            self._forget(worker_id)

    def _retire(self, worker_id: str, incarnation: int) -> None:
        retired = self._retired.setdefault(worker_id, {})
        retired[incarnation] = None
        if len(retired) > RETIRED_PER_ID:
            del retired[next(iter(retired))]

    def _forget(self, worker_id: str) -> None:
        for index in (self._last, self._retired, self._left_us):
            index.pop(worker_id, None)
