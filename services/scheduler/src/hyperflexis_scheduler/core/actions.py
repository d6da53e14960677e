"""What the scaler or an operator wants done to one worker."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.moves import Moves
from hyperflexis_scheduler.core.worker import WorkerState


class Outcome(Enum):
    APPLIED = "applied"
    REPEATED = "repeated"
    NOT_FOUND = "not_found"
    STALE_FENCE = "stale_fence"
    UNIMPLEMENTED = "unimplemented"
    INVALID = "invalid"
    IMPOSSIBLE = "impossible"
    """Not as things stand."""
    NOT_LEADER = "not_leader"


class ActionResult(NamedTuple):
    outcome: Outcome
    message: str = ""


class Actions:
    def __init__(self, cell: Cell, moves: Moves) -> None:
        self._cell = cell
        self._moves = moves
        self._applied: dict[str, None] = {}
        self.highest_epoch = 0
        """Of the scalers that have acted: lower ones were replaced."""

    def apply(self, request: scheduler_service_pb2.ApplyRequest, now_us: int) -> ActionResult:
        """Applies an action once; what was not applied may be tried again under the same id."""
        action = request.WhichOneof("action")
        if not request.action_id or action is None:
            return ActionResult(Outcome.INVALID, "action_id and one action are required")
        if request.action_id in self._applied:
            return ActionResult(Outcome.REPEATED)
        epoch = request.scaler_fence.epoch
        if epoch and epoch < self.highest_epoch:
            message = f"a scaler with epoch {self.highest_epoch} has acted; epoch {epoch} no longer leads"
            return ActionResult(Outcome.STALE_FENCE, message)
        if epoch > self.highest_epoch:
            self.highest_epoch = epoch
            self._cell.remember()
        if action == "migrate":
            return self._migrate(request, now_us)
        worker = self._cell.fleet.by_id.get(request.worker_id)
        if worker is None:
            return ActionResult(Outcome.NOT_FOUND, f"no worker {request.worker_id!r} is registered")
        if action not in ("drain", "set_role"):
            return ActionResult(Outcome.UNIMPLEMENTED, f"this scheduler cannot apply {action!r} yet")
        if action == "drain":
            worker.draining = not request.drain.undo
            worker.drain_reason = request.drain.reason
            seq = self._cell.command(worker, drain=request.drain)
            worker.undo_seq = seq if request.drain.undo else None
        else:
            self._cell.set_role(worker, request.set_role.role)
        self._cell.fleet.refresh(worker)
        self._cell.fleet.version += 1
        self._remember(request.action_id)
        return ActionResult(Outcome.APPLIED)

    def _migrate(self, request: scheduler_service_pb2.ApplyRequest, now_us: int) -> ActionResult:
        """One request to one worker. What comes of it is told by ExplainRequest."""
        request_id, worker_id = request.migrate.request_id, request.migrate.target_worker_id
        state, target = self._cell.book.get(request_id), self._cell.fleet.by_id.get(worker_id)
        if state is None:
            return ActionResult(Outcome.NOT_FOUND, f"request {request_id!r} is unknown, or ended too long ago")
        if target is None:
            return ActionResult(Outcome.NOT_FOUND, f"no worker {worker_id!r} is registered")
        if obstacle := self._moves.obstacle(state, target):
            return ActionResult(Outcome.IMPOSSIBLE, f"request {request_id!r} cannot move: {obstacle}")
        self._moves.begin(state, target, "operator", {}, now_us)
        self._remember(request.action_id)
        return ActionResult(Outcome.APPLIED)

    def repeat_standing(self, worker: WorkerState) -> None:
        """After a Snapshot: orders that the worker may have missed while its session was broken."""
        if worker.draining:
            self._cell.command(worker, drain={"reason": worker.drain_reason})
        elif worker.undo_seq is not None:
            # Not for ever: a worker that is stopped later drains by itself, and means it.
            draining = worker.readiness == capability_pb2.READINESS_DRAINING
            worker.undo_seq = self._cell.command(worker, drain={"undo": True}) if draining else None
        if worker.wanted_role:
            self._cell.command(worker, set_role={"role": worker.wanted_role})

    def applied(self, worker: WorkerState, applied_seq: int) -> None:
        """A Report says up to which command the worker has come."""
        if worker.undo_seq and applied_seq >= worker.undo_seq:
            worker.undo_seq = None

    def _remember(self, action_id: str) -> None:
        self._applied[action_id] = None
        if len(self._applied) > self._cell.rules.actions_limit:
            del self._applied[next(iter(self._applied))]
