"""Which schedulers believe that they lead a virtual cell, and how they come and go."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from virtual_process import SECOND
from virtual_scheduler import Scheduler
from virtual_store import Store

from hyperflexis.scheduler.v1 import scheduler_service_pb2, worker_session_pb2
from hyperflexis_scheduler.core.memory import Memory

if TYPE_CHECKING:
    from virtual_cell import VirtualCell
    from virtual_worker import Worker

REDIS_LOOK_US = 100_000
UNDRAIN_WATCHES = 60
"""Half seconds. An order to take a worker back is forgotten with the leader that it was given to."""


class Leaders:
    """More than one while an older leader lives on beside the newest, which alone is right."""

    def __init__(self, cell: VirtualCell) -> None:
        self._cell = cell
        self._time = cell.time
        self._epoch = 1
        self._actions = 0
        self.store = Store()
        """As Redis has it."""
        self.blind = False
        """A leader has begun without what the one before left: it could not tell which life replaced which."""
        self._living: list[Scheduler] = []

    def __len__(self) -> int:
        return len(self._living)

    @property
    def newest(self) -> Scheduler | None:
        return self._living[-1] if self._living else None

    def door(self) -> Scheduler | None:
        """Where a dial of the schedulers' addresses, one after the other, ends."""
        return self._cell.chance.choice(self._living) if self._living else None

    def begin(self) -> None:
        self._living.append(Scheduler(self._cell, self._epoch, Memory()))

    def replace(self, above: int = 0, gap_us: int = 1_500_000, blind: bool = False) -> None:
        """The newest dies; after the gap a standby leads with a higher epoch. `blind`: Redis lets it take the lease
        and then does not tell what the one before left."""
        if not self._living:
            return
        old = self._living.pop()
        old.alive = False
        for link in old.dialled:
            link.break_now()
        self._epoch = max(self._epoch, above) + 1
        self._time.after(gap_us, partial(self._lead, self._epoch, blind))

    def usurp(self, for_us: int, share: float) -> None:
        """A partition: another scheduler leads while the older one lives on and does not know. Part of the sessions
        break, and find either. After `for_us`, at the latest, the older one reads of the other in Redis."""
        older = self.newest
        if older is None:
            return
        self._epoch += 1
        self._lead(self._epoch, blind=False)
        for link in older.dialled:
            if self._cell.chance.random() < share:
                link.break_now()
        self._time.after(for_us, partial(self._stand_down, older))

    def stop(self, for_us: int) -> None:
        """SIGSTOP, then CONT."""
        if self.newest is not None:
            self.newest.stop_for(for_us)

    def stop_and_usurp(self, for_us: int) -> None:
        """The same, and another one leads meanwhile: the older one wakes into the other's time."""
        older = self.newest

        def usurp() -> None:
            if older is self.newest:
                self.usurp(for_us + 5 * SECOND, share=0.0)

        self.stop(for_us)
        self._time.after(for_us // 2, usurp)

    def outranked(self, scheduler: Scheduler, epoch: int) -> None:
        """It has heard of a higher epoch. Where nobody leads in that, somebody stands above it."""
        if scheduler is self.newest:
            self.replace(above=epoch)
        else:
            self._stand_down(scheduler)

    # --- an operator's orders ---

    def drain(self, worker: Worker, for_us: int) -> bool:
        """Empties a worker, and takes it back: repeated until the worker says so. False where the leader does not
        know it."""
        if not self._order(worker, undo=False):
            return False
        self._time.after(for_us, partial(self._undrain, worker))
        return True

    def _undrain(self, worker: Worker) -> None:
        """At least once: the order to drain may still wait for a leader that is stopped."""
        self._order(worker, undo=True)
        for watch in range(1, UNDRAIN_WATCHES):
            self._time.after(watch * SECOND // 2, partial(self._see_undrained, worker))

    def _see_undrained(self, worker: Worker) -> None:
        current = worker.alive and self._cell.workers.get(worker.key.worker_id) is worker
        if current and (worker.draining or not self._usable(worker)):
            self._order(worker, undo=True)

    def _order(self, worker: Worker, undo: bool) -> bool:
        leader = self.newest
        if leader is None or not leader.knows(worker.key):
            return False
        self._actions += 1
        order = worker_session_pb2.Drain(reason="operator", undo=undo)
        request = scheduler_service_pb2.ApplyRequest(
            action_id=f"a{self._actions}", worker_id=worker.key.worker_id, drain=order
        )
        leader.deliver(lambda: leader.apply(leader.core.apply(request, leader.now_us())[1]))
        return True

    # --- inside ---

    def _lead(self, epoch: int, blind: bool) -> None:
        if epoch != self._epoch:
            return
        if self._cell.redis_away:
            # Nobody takes a lease that Redis cannot give.
            self._time.after(REDIS_LOOK_US, partial(self._lead, epoch, blind))
            return
        self.blind |= blind
        self.store.epoch = epoch
        self._living.append(Scheduler(self._cell, epoch, None if blind else self.store.read(self._time.now_us)))

    def _stand_down(self, scheduler: Scheduler) -> None:
        """Redis counts epochs: a later one than its own has been granted, though that leader may be dead already."""
        if scheduler in self._living and scheduler.epoch < self._epoch:
            self._living.remove(scheduler)
            scheduler.deliver(scheduler.stand_down)

    def _usable(self, worker: Worker) -> bool:
        return self.newest is not None and self.newest.uses(worker.key)
