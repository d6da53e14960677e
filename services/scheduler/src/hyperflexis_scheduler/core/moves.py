"""Moves under way: begun by an AttachKv to the target, ended by the target's answer (docs/protocol.md, "Moves").

Which request should move, and where to, is decided elsewhere (core.migrator); here is what keeps it safe.
"""

from __future__ import annotations

from collections.abc import Mapping

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.grants import Grants
from hyperflexis_scheduler.core.move import Move
from hyperflexis_scheduler.core.request import Phase, RequestState
from hyperflexis_scheduler.core.worker import WorkerState

_Kind = worker_session_pb2.RequestUpdate


class Moves:
    def __init__(self, cell: Cell, grants: Grants) -> None:
        self._cell = cell
        self._grants = grants

    def obstacle(self, state: RequestState, target: WorkerState) -> str:
        """Why this request cannot be moved there now; empty where it can."""
        source = state.worker
        if state.phase is not Phase.PLACED or source is None or not state.ran:
            return "it does not run"
        if not state.known or state.done:
            return "its router has not claimed it"
        if state.move is not None:
            return f"it is moving to {state.move.target.key.worker_id} already"
        if target is source:
            return "it runs there already"
        if target.model != source.model:
            return f"{target.key.worker_id} serves another model"
        if not (source.moves and target.moves):
            return "the caches of one of the two engines do not move"
        if not source.connected or not target.admits:
            return f"{target.key.worker_id} takes nothing at present"
        return ""

    def begin(
        self, state: RequestState, target: WorkerState, reason: str, numbers: Mapping[str, float], now_us: int
    ) -> None:
        """There must be no obstacle. The request goes on where it is until the target has taken it over."""
        source, cell = state.worker, self._cell
        assert source is not None
        gigabytes = state.prefill_tokens * source.bytes_per_token / 1e9
        move = state.move = Move(target, cell.next_attempt(), reason, now_us, source.slot, gigabytes)
        target.expect(state)
        cell.fleet.links.begin(source.slot, target.slot, gigabytes)
        state.note("move", reason, now_us, numbers, target.key.worker_id)
        ticket = movement_pb2.KvTicket(
            request_id=state.request_id,
            attempt=state.attempt.proto(),
            source=source.ref(),
            num_tokens=state.prefill_tokens,
        )
        run = self._grants.run(state, move.attempt, now_us)
        cell.tally.moves_begun[reason] += 1
        seq = cell.command(target, attach_kv=worker_session_pb2.AttachKv(run=run, ticket=ticket))
        target.ledger.charge(seq, state.request_id, 0, 0, 0.0)

    def update(
        self, state: RequestState, worker: WorkerState, update: worker_session_pb2.RequestUpdate, now_us: int
    ) -> bool:
        """The target's word on a move; False where it is about something else."""
        move = state.move
        if move is None or move.target is not worker or move.attempt != Attempt.of(update.attempt):
            return False
        if update.kind == _Kind.KIND_ATTACHED:
            self._grants.hand_over(state, dict(update.decision.numbers), now_us)
        else:
            self._fail(state, update.decision.reason or "not_attached", now_us)
        return True

    def stopped(self, state: RequestState, now_us: int) -> None:
        """Its source has stopped it for the target; where nobody takes it over any more, it is computed again."""
        if state.move is not None:
            state.move.stopped = True
        else:
            self._grants.lose(state, "stopped_for_nobody", now_us)

    def in_snapshot(self, worker: WorkerState, status: worker_session_pb2.RequestStatus, now_us: int) -> bool:
        """Is this the attempt of a move that is still under way? One that its target has taken over becomes current."""
        state = self._cell.book.get(status.request_id)
        move = state.move if state is not None else None
        if state is None or move is None or move.target is not worker or move.attempt != Attempt.of(status.attempt):
            return False
        if status.phase == worker_session_pb2.REQUEST_PHASE_ATTACHING:
            return True
        self._grants.hand_over(state, {}, now_us)
        return False

    def not_in_snapshot(self, worker: WorkerState, shown: set[str], now_us: int) -> None:
        for request_id, state in list(worker.incoming.items()):
            if request_id not in shown and not worker.ledger.in_flight(request_id):
                self._fail(state, "not_in_snapshot", now_us)

    def target_gone(self, worker: WorkerState, reason: str, now_us: int) -> None:
        for state in list(worker.incoming.values()):
            self._fail(state, reason, now_us)

    def _fail(self, state: RequestState, reason: str, now_us: int) -> None:
        move = state.move
        assert move is not None
        self._grants.forget_move(state)
        self._cell.tally.moves_failed[reason] += 1
        state.note("move_failed", reason, now_us, None, move.target.key.worker_id)
        if move.stopped:
            self._grants.lose(state, "move_failed", now_us)
