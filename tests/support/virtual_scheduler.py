"""The scheduler's core as a process of the virtual cell."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from virtual_engine import BLOCK_TOKENS
from virtual_network import Link
from virtual_process import SECOND, TICK_US, Process

from hyperflexis.common.v1 import identity_pb2
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_scheduler.core import effects as scheduler_effects
from hyperflexis_scheduler.core.dispatch_policy import POLICIES
from hyperflexis_scheduler.core.memory import Memory
from hyperflexis_scheduler.core.rules import Rules
from hyperflexis_scheduler.core.scheduler import SchedulerCore

if TYPE_CHECKING:
    from virtual_cell import VirtualCell


class Scheduler(Process):
    def __init__(self, cell: VirtualCell, epoch: int, memory: Memory | None) -> None:
        super().__init__(cell)
        self.epoch = epoch
        self.core = SchedulerCore(Rules(pull_tokens=BLOCK_TOKENS), POLICIES[cell.policy]())
        self.links: dict[int, Link] = {}
        self.dialled: list[Link] = []
        """Every connection to this process, those it has not heard from yet included."""
        self._next = 1
        self.core.begin(identity_pb2.Fence(epoch=epoch, leader_id=f"s{epoch}"), memory, self.now_us())
        self._tick()
        self._remember()

    def accept(self, link: Link) -> int:
        session, self._next = self._next, self._next + 1
        self.links[session] = link
        return session

    def knows(self, key: WorkerKey) -> bool:
        """This very life of the worker is registered."""
        cell = self.core.cell
        worker = cell.fleet.by_id.get(key.worker_id) if cell is not None else None
        return worker is not None and worker.key == key

    def uses(self, key: WorkerKey) -> bool:
        """And may be given work, of whatever kind its role admits."""
        cell = self.core.cell
        return cell is not None and self.knows(key) and cell.fleet.by_id[key.worker_id].admits

    def revocable(self, key: WorkerKey) -> int:
        """Requests there that have not been seen to start."""
        cell = self.core.cell
        return len(cell.fleet.by_id[key.worker_id].revocable) if cell is not None and self.knows(key) else 0

    def apply(self, effects: list[scheduler_effects.Effect]) -> None:
        for effect in effects:
            match effect:
                case scheduler_effects.ToRouter(session, message) | scheduler_effects.ToWorker(session, message):
                    if session in self.links and not self.cell.drop(message):
                        self.links[session].send("down", message)
                case scheduler_effects.CloseSession(session, _, _):
                    if session in self.links:
                        self.links.pop(session).close_from("down")
                case scheduler_effects.HigherEpoch(epoch):
                    self.cell.time.after(0, partial(self.cell.leaders.outranked, self, epoch))
                case scheduler_effects.Remember():
                    self._exchange()

    def stand_down(self) -> None:
        """It has heard that another one leads: closes its sessions and decides nothing any more."""
        self.apply(self.core.end(self.now_us()))
        self.alive = False
        for link in self.dialled:
            link.break_now()

    def _remember(self) -> None:
        if self.alive:
            self.deliver(self._exchange)
            self.cell.time.after(SECOND, self._remember)

    def _exchange(self) -> None:
        """As MemoryKeeper does: nothing is written over what was never read."""
        cell, store = self.core.cell, self.cell.leaders.store
        if cell is None or self.cell.redis_away:
            return
        if not cell.remembers:
            self.apply(self.core.learn(store.read(self.cell.time.now_us), self.now_us()))
        store.write(self.epoch, self.core.memory(), self.cell.time.now_us)

    def _tick(self) -> None:
        if self.alive:
            self.deliver(lambda: self.apply(self.core.tick(self.now_us())))
            self.cell.time.after(TICK_US, self._tick)
