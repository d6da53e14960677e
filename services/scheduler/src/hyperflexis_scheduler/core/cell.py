"""Everything one leader knows, and the effects of the event it is handling. A new leader starts a new one."""

from __future__ import annotations

from typing import Any

from hyperflexis.common.v1 import capability_pb2, identity_pb2
from hyperflexis.scheduler.v1 import router_session_pb2, worker_session_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_scheduler.core.book import Book
from hyperflexis_scheduler.core.dispatch_policy import SchedulerPolicy
from hyperflexis_scheduler.core.effects import (
    CloseSession,
    Effect,
    HigherEpoch,
    Remember,
    ToRouter,
    ToWorker,
    TpotTooShort,
)
from hyperflexis_scheduler.core.fleet import Fleet
from hyperflexis_scheduler.core.hold import HoldQueue
from hyperflexis_scheduler.core.request import RouterKey
from hyperflexis_scheduler.core.routers import Routers
from hyperflexis_scheduler.core.rules import Rules
from hyperflexis_scheduler.core.tally import MAX_TIERS, Tally
from hyperflexis_scheduler.core.worker import WorkerState


class Cell:
    """State and outgoing messages, no decisions. Every message down carries the leader's epoch."""

    def __init__(self, rules: Rules, policy: SchedulerPolicy, fence: identity_pb2.Fence, now_us: int) -> None:
        self.rules = rules
        self.policy = policy
        self.fence = fence
        self.remembers = False
        """It has what the leader before left."""
        self.fleet = Fleet(rules, now_us)
        self.routers = Routers()
        self.book = Book(rules.retention_us, rules.retained_limit)
        self.hold = HoldQueue(rules.hold_limit)
        self.settling: dict[str, None] = {}
        """Resumed requests that wait for the known workers' Snapshots."""
        self.settled = False
        self.tally = Tally()
        self._told: set[tuple[str, str]] = set()
        """(tier, model) whose TPOT was too short."""
        self._attempt_seq = 0
        self._effects: list[Effect] = []

    def next_attempt(self) -> Attempt:
        self._attempt_seq += 1
        return Attempt(self.fence.epoch, self._attempt_seq)

    def to_session(self, session: int, **message: Any) -> None:
        response = router_session_pb2.RouterSessionResponse(epoch=self.fence.epoch, **message)
        self._effects.append(ToRouter(session, response))

    def to_router(self, key: RouterKey | None, **message: Any) -> None:
        """Dropped where the router is away: it asks again for everything when it is back."""
        router = self.routers.by_key.get(key) if key is not None else None
        if router is not None:
            self.to_session(router.session, **message)

    def tell(self, session: int, **message: Any) -> None:
        """To a worker, not a command."""
        response = worker_session_pb2.WorkerSessionResponse(epoch=self.fence.epoch, **message)
        self._effects.append(ToWorker(session, response))

    def command(self, worker: WorkerState, **message: Any) -> int:
        """Sends a command and returns its seq; 0 and nothing sent where the worker is away, since what it
        holds is settled by its next Snapshot."""
        if worker.session is None:
            return 0
        worker.sent_seq += 1
        response = worker_session_pb2.WorkerSessionResponse(epoch=self.fence.epoch, seq=worker.sent_seq, **message)
        self._effects.append(ToWorker(worker.session, response))
        return worker.sent_seq

    def set_role(self, worker: WorkerState, role: capability_pb2.Role.ValueType) -> None:
        """It holds at once here; the worker is told so that it says the same to others."""
        worker.wanted_role = role
        worker.take_role()
        self.fleet.refresh(worker)
        self.fleet.announce(worker)
        self.command(worker, set_role=worker_session_pb2.SetRole(role=role))

    def close(self, session: int, reason: str, permanent: bool = False) -> None:
        self._effects.append(CloseSession(session, reason, permanent))

    def remember(self) -> None:
        """A crash of this leader must not undo what has just happened."""
        self._effects.append(Remember())

    def tpot_too_short(self, tier: str, model: str, tpot_us: int, empty_step_us: float) -> None:
        if len(self._told) < MAX_TIERS and (tier, model) not in self._told:
            self._told.add((tier, model))
            self._effects.append(TpotTooShort(tier, model, tpot_us, empty_step_us))

    def heard_fence(self, fence: identity_pb2.Fence) -> None:
        """A peer's highest fence. An equal epoch under another name can only be a rival's (Redis lost its
        counter): both must go above it."""
        rival = fence.epoch == self.fence.epoch and fence.leader_id != self.fence.leader_id
        if fence.epoch > self.fence.epoch or rival:
            self._effects.append(HigherEpoch(fence.epoch))

    def worker_entry(self, worker: WorkerState) -> router_session_pb2.WorkerEntry:
        return router_session_pb2.WorkerEntry(
            identity=worker.key.proto(),
            address=worker.address,
            model=worker.model,
            role=worker.role,
            readiness=worker.readiness,
            hash_block_tokens=worker.capabilities.hash_block_tokens,
            sampling_features=worker.capabilities.sampling_features,
        )

    def flush(self) -> list[Effect]:
        """The effects of this event. Changes of the worker list go first: a Placed may name a new worker."""
        effects, self._effects = self._effects, []
        fleet = self.fleet
        if not fleet.changed and not fleet.removed:
            return effects
        changes = router_session_pb2.WorkerList(
            workers=[self.worker_entry(fleet.by_id[worker_id]) for worker_id in fleet.changed],
            removed=[key.proto() for key in fleet.removed],
        )
        fleet.changed.clear()
        fleet.removed.clear()
        message = router_session_pb2.RouterSessionResponse(epoch=self.fence.epoch, workers=changes)
        return [*(ToRouter(session, message) for session in self.routers.by_session), *effects]
