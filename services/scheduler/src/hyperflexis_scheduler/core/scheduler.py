"""The door of the core: each event of the outside is one method, and each returns what to do about it."""

from __future__ import annotations

from collections.abc import Callable

from hyperflexis.common.v1 import identity_pb2, slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2, scheduler_service_pb2, worker_session_pb2
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_scheduler.core.actions import ActionResult, Actions, Outcome
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.cluster import describe
from hyperflexis_scheduler.core.dispatch_policy import SchedulerPolicy
from hyperflexis_scheduler.core.effects import CloseSession, Effect, ToRouter, ToWorker
from hyperflexis_scheduler.core.grants import Grants
from hyperflexis_scheduler.core.link_orders import LinkOrders
from hyperflexis_scheduler.core.memory import Memory
from hyperflexis_scheduler.core.migrator import Migrator
from hyperflexis_scheduler.core.moves import Moves
from hyperflexis_scheduler.core.placement import Placement
from hyperflexis_scheduler.core.rebalance import Rebalance
from hyperflexis_scheduler.core.reports import Reports
from hyperflexis_scheduler.core.request import RouterKey
from hyperflexis_scheduler.core.routers import RouterState
from hyperflexis_scheduler.core.rules import Rules
from hyperflexis_scheduler.core.submission import Submissions
from hyperflexis_scheduler.core.workers import Workers


class _Reign:
    """One time as leader: the state and those who work on it."""

    def __init__(self, cell: Cell, began_us: int, settle_by_us: int) -> None:
        self.cell = cell
        self.settle_by_us = settle_by_us
        self.ticked_us = began_us
        self.grants = Grants(cell)
        links = LinkOrders(cell)
        self.placement = Placement(cell, self.grants, links)
        self.submissions = Submissions(cell, self.grants, self.placement)
        self.moves = Moves(cell, self.grants)
        self.actions = Actions(cell, self.moves)
        self.migrator = Migrator(cell, self.moves, links)
        reports = Reports(cell, self.grants, self.placement, self.moves, self.migrator)
        self.workers = Workers(cell, self.grants, self.moves, reports, self.actions)
        self.rebalance = Rebalance(cell, self.grants)


class SchedulerCore:
    """Events and the time in, effects out. Between `end` and `begin` every peer is answered NotLeader.

    Session numbers are the caller's, never used twice, and unique over routers and workers together.
    Time never goes back.
    """

    def __init__(self, rules: Rules, policy: SchedulerPolicy) -> None:
        self.rules = rules
        self.policy = policy
        self.not_leader = router_session_pb2.NotLeader()
        """What peers are told while this scheduler does not lead; the shell keeps it up to date."""
        self._reign: _Reign | None = None

    @property
    def cell(self) -> Cell | None:
        """The state as it is, to be read; None while not leading."""
        return self._reign.cell if self._reign else None

    def begin(self, fence: identity_pb2.Fence, memory: Memory | None, now_us: int) -> list[Effect]:
        """Become leader. `memory`: what the one before left; None = it cannot be had now, so that resumed requests
        wait their whole time, and `learn` brings it later."""
        effects = self.end(now_us)
        cell = Cell(self.rules, self.policy, fence, now_us)
        self._reign = _Reign(cell, now_us, now_us + self.rules.resume_wait_us)
        return effects if memory is None else effects + self.learn(memory, now_us)

    def learn(self, memory: Memory, now_us: int) -> list[Effect]:
        """What the leader before left. It says nothing for sure of the workers that this one has already."""
        reign = self._reign
        if reign is None:
            return []
        reign.cell.remembers = True
        reign.actions.highest_epoch = max(reign.actions.highest_epoch, memory.scaler_epoch)
        return self._on_workers(lambda workers: workers.learn(memory.workers, now_us), now_us)

    def memory(self) -> Memory:
        """What the next leader should know."""
        if self._reign is None:
            return Memory()
        fleet = self._reign.cell.fleet
        return Memory(tuple(fleet.record(worker) for worker in fleet), self._reign.actions.highest_epoch)

    def end(self, now_us: int) -> list[Effect]:
        """Step down: closes every session and forgets everything."""
        if self._reign is None:
            return []
        cell = self._reign.cell
        self._reign = None
        sessions = [*cell.routers.by_session, *cell.fleet.by_session]
        return [CloseSession(session, "no longer the leader") for session in sessions]

    def router_opened(self, session: int, hello: router_session_pb2.RouterHello, now_us: int) -> list[Effect]:
        if self._reign is None:
            message = router_session_pb2.RouterSessionResponse(not_leader=self.not_leader)
            return [ToRouter(session, message), CloseSession(session, "not the leader")]
        cell = self._reign.cell
        cell.heard_fence(hello.highest_fence)
        if hello.protocol_version != PROTOCOL_VERSION:
            reason = f"protocol {hello.protocol_version} is not {PROTOCOL_VERSION}; install a matching release"
            cell.close(session, reason, permanent=True)
            return cell.flush()
        router = RouterState(RouterKey(hello.router_id, hello.incarnation), session, now_us)
        older = cell.routers.add(router)
        if older is not None:
            cell.close(older.session, "a newer session of this router is open")
        effects = cell.flush()
        welcome = router_session_pb2.RouterWelcome(fence=cell.fence, protocol_version=PROTOCOL_VERSION)
        cell.to_session(session, welcome=welcome)
        entries = [cell.worker_entry(worker) for worker in cell.fleet]
        cell.to_session(session, workers=router_session_pb2.WorkerList(full=True, workers=entries))
        return effects + cell.flush()

    def router_message(
        self, session: int, request: router_session_pb2.RouterSessionRequest, now_us: int
    ) -> list[Effect]:
        reign = self._reign
        router = reign.cell.routers.by_session.get(session) if reign else None
        if reign is None or router is None:
            return []
        router.pulse.heard_us = now_us
        kind = request.WhichOneof("message")
        if kind == "submit":
            reign.submissions.submit(router, request.submit, now_us)
        elif kind == "cancel":
            reign.submissions.cancel(request.cancel, now_us)
        elif kind == "done":
            reign.submissions.done(request.done, now_us)
        elif kind == "pong":
            router.pulse.pong(request.pong.id, now_us)
            reign.cell.heard_fence(request.pong.highest_fence)
        return reign.cell.flush()

    def router_closed(self, session: int, now_us: int) -> list[Effect]:
        if self._reign is not None:
            self._reign.cell.routers.remove(session)
        return []

    def worker_opened(self, session: int, register: worker_session_pb2.Register, now_us: int) -> list[Effect]:
        if self._reign is None:
            message = worker_session_pb2.WorkerSessionResponse(not_leader=self.not_leader)
            return [ToWorker(session, message), CloseSession(session, "not the leader")]
        return self._on_workers(lambda workers: workers.opened(session, register, now_us), now_us)

    def worker_message(
        self, session: int, request: worker_session_pb2.WorkerSessionRequest, now_us: int
    ) -> list[Effect]:
        worker = self._reign.cell.fleet.by_session.get(session) if self._reign else None
        if worker is None:
            return []
        return self._on_workers(lambda workers: workers.message(worker, request, now_us), now_us)

    def worker_closed(self, session: int, now_us: int) -> list[Effect]:
        worker = self._reign.cell.fleet.by_session.get(session) if self._reign else None
        if worker is None:
            return []
        return self._on_workers(lambda workers: workers.closed(worker, now_us), now_us)

    def apply(self, request: scheduler_service_pb2.ApplyRequest, now_us: int) -> tuple[ActionResult, list[Effect]]:
        if self._reign is None:
            return ActionResult(Outcome.NOT_LEADER, "this scheduler does not lead"), []
        result = self._reign.actions.apply(request, now_us)
        self._settle(self._reign, now_us)
        return result, self._reign.cell.flush()

    def tick(self, now_us: int) -> list[Effect]:
        """Everything that only time brings about; at least each 100 ms."""
        reign = self._reign
        if reign is None:
            return []
        cell, rules = reign.cell, self.rules
        gap_us = now_us - reign.ticked_us
        reign.ticked_us = now_us
        if gap_us > rules.stall_us:
            reign.settle_by_us += gap_us
            reign.workers.forgive(gap_us, now_us)
            for router in cell.routers.by_session.values():
                router.pulse.forgive(gap_us, now_us)
        reign.workers.watch(now_us)
        for router in list(cell.routers.by_session.values()):
            if router.pulse.silent(rules.silence_us, now_us):
                cell.close(router.session, "silent for too long")
                cell.routers.remove(router.session)
                continue
            ping = router.pulse.ping(rules.ping_us, now_us)
            if ping is not None:
                cell.to_session(router.session, ping=ping)
        self._settle(reign, now_us)
        reign.placement.expire_hold(now_us)
        reign.rebalance.round(now_us)
        reign.migrator.round(now_us)
        cell.book.expire(now_us)
        return cell.flush()

    def cluster(self, now_us: int) -> scheduler_service_pb2.WatchClusterResponse:
        return describe(self._reign.cell, now_us) if self._reign else scheduler_service_pb2.WatchClusterResponse()

    def explain(self, request_id: str, now_us: int) -> list[slo_pb2.Decision]:
        """Every decision kept for a request, oldest first; empty where it is not known."""
        state = self._reign.cell.book.get(request_id) if self._reign else None
        return [note.proto(now_us) for note in state.notes] if state else []

    def _on_workers(self, event: Callable[[Workers], None], now_us: int) -> list[Effect]:
        """An event of a worker may make room for what waits."""
        reign = self._reign
        assert reign is not None
        event(reign.workers)
        self._settle(reign, now_us)
        return reign.cell.flush()

    def _settle(self, reign: _Reign, now_us: int) -> None:
        cell = reign.cell
        complete = cell.remembers and not cell.fleet.awaited
        if not cell.settled and (complete or now_us >= reign.settle_by_us):
            reign.submissions.settle(now_us)
        if len(cell.hold):
            reign.placement.drain_hold(now_us)
