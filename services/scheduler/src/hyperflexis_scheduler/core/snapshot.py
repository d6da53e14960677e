"""Making the ledger agree with what a worker says it holds (docs/protocol.md, "The ledger")."""

from __future__ import annotations

from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.grants import Grants
from hyperflexis_scheduler.core.moves import Moves
from hyperflexis_scheduler.core.request import Phase, RequestState
from hyperflexis_scheduler.core.worker import WorkerState

_RAN = frozenset(
    {
        worker_session_pb2.REQUEST_PHASE_PREFILL,
        worker_session_pb2.REQUEST_PHASE_DECODE,
        worker_session_pb2.REQUEST_PHASE_EXPORTED,
    }
)
_ENDED = (Phase.REFUSED, Phase.FINISHED, Phase.CANCELLED)


class Snapshots:
    def __init__(self, cell: Cell, grants: Grants, moves: Moves) -> None:
        self._cell = cell
        self._grants = grants
        self._moves = moves

    def reconcile(self, worker: WorkerState, snapshot: worker_session_pb2.Snapshot, now_us: int) -> None:
        """Afterwards every attempt on the worker is current or being cancelled, and every current attempt
        that should be there is, or its router has been told that it is lost."""
        for state in worker.attempts.values():
            # A Revoke of the session before was lost with it, or its answer was: it may be asked again.
            self._grants.revoke_answered(state)
        moving = {s.request_id for s in snapshot.requests if self._moves.in_snapshot(worker, s, now_us)}
        self._moves.not_in_snapshot(worker, moving, now_us)
        current = {
            status.request_id
            for status in snapshot.requests
            if status.request_id not in moving and self._claim(worker, status, now_us)
        }
        for state in list(worker.attempts.values()):
            # A Run that is still on its way may be newer than the Snapshot.
            if state.request_id not in current and not worker.ledger.in_flight(state.request_id):
                self._grants.lose(state, "not_in_snapshot", now_us)

    def _claim(self, worker: WorkerState, status: worker_session_pb2.RequestStatus, now_us: int) -> bool:
        """Is it the current attempt, now or by adoption? Cancels it if not."""
        attempt = Attempt.of(status.attempt)
        finished = status.phase == worker_session_pb2.REQUEST_PHASE_FINISHED
        state = self._cell.book.get(status.request_id)
        if state is None and attempt.leader_epoch < self._cell.fence.epoch:
            state = self._cell.book.add(status.request_id, now_us)
            state.model = worker.model
            state.prompt_tokens = status.prompt_tokens
        coming = status.phase == worker_session_pb2.REQUEST_PHASE_ATTACHING
        if state is None or coming or not self._current(state, worker, attempt, now_us):
            # A finished attempt uses nothing but the memory that its router may still read.
            if not finished:
                self._grants.cancel(worker, status.request_id, attempt, "not the current attempt")
            return False
        if state.phase is not Phase.PLACED:
            return True
        if finished:
            self._grants.finish(state, "snapshot", now_us, status.output_tokens)
        else:
            self._grants.progressed(
                state,
                started=status.phase != worker_session_pb2.REQUEST_PHASE_AWAITING_START,
                ran=status.phase in _RAN,
            )
            if status.phase == worker_session_pb2.REQUEST_PHASE_DECODE:
                state.decoding = True
                worker.decodes_now(state)
            if status.phase == worker_session_pb2.REQUEST_PHASE_EXPORTED and state.move is not None:
                state.move.stopped = True
        if state.known:
            self._grants.send_placed(state, now_us)
        return True

    def _current(self, state: RequestState, worker: WorkerState, attempt: Attempt, now_us: int) -> bool:
        if attempt == state.attempt and state.worker is worker:
            return state.phase in (Phase.PLACED, Phase.FINISHED)
        if state.phase in _ENDED or not _newer(state, attempt):
            return False
        if state.phase is Phase.PLACED:
            self._grants.cancel_attempt(state, "superseded")
        self._grants.adopt(state, worker, attempt, now_us)
        return True


def _newer(state: RequestState, attempt: Attempt) -> bool:
    """May an attempt that a Snapshot shows become the current one? Not one below what its router knows, which
    the router would ignore, nor the one it has given up."""
    failed = state.router_attempt_failed and attempt == state.router_attempt
    return attempt > state.attempt and attempt >= state.router_attempt and not failed
