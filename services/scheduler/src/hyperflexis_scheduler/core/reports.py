"""What workers say of their attempts and of themselves between Snapshots."""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.grants import Grants
from hyperflexis_scheduler.core.load_row import MOST_US
from hyperflexis_scheduler.core.migrator import Migrator
from hyperflexis_scheduler.core.moves import Moves
from hyperflexis_scheduler.core.placement import Placement
from hyperflexis_scheduler.core.request import Phase, RequestState
from hyperflexis_scheduler.core.worker import WorkerState

_Kind = worker_session_pb2.RequestUpdate

_LOST = {
    _Kind.KIND_NOT_STARTED: "not_started",
    _Kind.KIND_LOST: "engine_lost",
    _Kind.KIND_REJECTED: "rejected",
    # Ended by the worker itself (its router's feed was gone too long): a router that still wants it submits.
    _Kind.KIND_CANCELLED: "cancelled_by_worker",
}


class Reports:
    def __init__(self, cell: Cell, grants: Grants, placement: Placement, moves: Moves, migrator: Migrator) -> None:
        self._cell = cell
        self._grants = grants
        self._moves = moves
        self._migrator = migrator
        self._placement = placement

    def report(self, worker: WorkerState, report: worker_session_pb2.Report, now_us: int) -> None:
        worker.report_seq = report.report_seq
        worker.reported(report.applied_seq, report.load if report.HasField("load") else None, now_us)
        if report.HasField("busy"):
            worker.report_busy(report.busy.for_us, now_us)
        if report.HasField("step_time"):
            worker.report_step_time(report.step_time)
        if report.HasField("telemetry"):
            worker.telemetry = report.telemetry
        if report.HasField("cache") and self._cell.rules.prefix_aware:
            self._cache(worker, report.cache)
        self.standing(worker, report.role, report.readiness)
        self._migrator.links_reported(worker, report.links)
        for update in report.updates:
            self._update(worker, update, now_us)

    def _cache(self, worker: WorkerState, news: worker_session_pb2.CacheNews) -> None:
        prefixes = self._cell.fleet.prefixes
        if news.reset:
            prefixes.forget(worker.slot)
        prefixes.removed(worker.slot, news.removed)
        prefixes.stored(worker.slot, news.stored)

    def standing(
        self, worker: WorkerState, role: capability_pb2.Role.ValueType, readiness: capability_pb2.Readiness.ValueType
    ) -> None:
        """Readiness and role as reported, an unspecified one unchanged; a role that was ordered stands."""
        was = (worker.role, worker.readiness)
        worker.take_role(role)
        worker.readiness = readiness or worker.readiness
        self._cell.fleet.refresh(worker)
        if (worker.role, worker.readiness) != was:
            self._cell.fleet.announce(worker)

    def _update(self, worker: WorkerState, update: worker_session_pb2.RequestUpdate, now_us: int) -> None:
        """Only the current attempt matters, and that of a move; news of older ones was expected or is too late."""
        state = self._cell.book.get(update.request_id)
        if state is None or self._moves.update(state, worker, update, now_us):
            return
        if state.phase is not Phase.PLACED or state.worker is not worker or state.attempt != Attempt.of(update.attempt):
            return
        grants = self._grants
        numbers = _numbers(update)
        kind = update.kind
        if kind in _LOST:
            state.avoid = worker.key
            grants.lose(state, _LOST[kind], now_us, numbers)
        elif kind in (_Kind.KIND_STARTED, _Kind.KIND_FIRST_TOKEN):
            self._happened(state, kind, _when(worker, update, now_us))
            grants.progressed(state, started=True, ran=True)
            if kind == _Kind.KIND_FIRST_TOKEN and not state.decoding:
                state.decoding = True
                worker.decodes_now(state)
                self._migrator.first_token(state, now_us)
        elif kind == _Kind.KIND_KV_READY:
            self._moves.stopped(state, now_us)
        elif kind == _Kind.KIND_FINISHED:
            at_us = _when(worker, update, now_us)
            grants.finish(state, "worker", now_us, update.output_tokens, numbers, at_us)
        elif kind == _Kind.KIND_NOT_REVOKED:
            if state.revoking:
                state.note("keep", "began", now_us)
            grants.revoke_answered(state)
            grants.progressed(state, started=True, ran=True)
        elif kind == _Kind.KIND_REVOKED:
            self._returned(state, "revoked", update, now_us)
        elif kind == _Kind.KIND_GAVE_UP:
            self._returned(state, "gave_up", update, now_us)
        elif kind == _Kind.KIND_PREEMPTED:
            state.note("preempt", update.decision.reason or "worker", _when(worker, update, now_us), numbers)

    @staticmethod
    def _happened(state: RequestState, kind: worker_session_pb2.RequestUpdate.Kind.ValueType, at_us: int) -> None:
        """For those who ask what came of a decision; told twice, it is noted once."""
        if kind == _Kind.KIND_FIRST_TOKEN:
            noted = "resumed" if state.base_index else "first_token"
        elif not state.ran:
            noted = "begin"
        else:
            return
        if not any(note.kind == noted and note.attempt == state.attempt for note in state.notes):
            state.note(noted, "worker", at_us)

    def _returned(self, state: RequestState, kind: str, update: worker_session_pb2.RequestUpdate, now_us: int) -> None:
        """The attempt is gone and made no token, so that the scheduler may place the request again itself."""
        worker = state.worker
        assert worker is not None
        numbers = _numbers(update)
        if state.done or not state.known:
            # Adopted from a Snapshot and not yet submitted to this leader: the Submit brings what a Run needs.
            self._grants.lose(state, kind, now_us, numbers)
            return
        state.note(kind, update.decision.reason or "worker", _when(worker, update, now_us), numbers)
        if kind == "gave_up":
            state.avoid = worker.key
            self._grants.release(state)
            self._placement.gave_up(state, numbers, now_us)
        else:
            self._placement.place(state, now_us)


def _numbers(update: worker_session_pb2.RequestUpdate) -> dict[str, float]:
    """Those of the worker's decision; what is no number, or could be none of microseconds, is left out."""
    return {name: number for name, number in update.decision.numbers.items() if abs(number) < MOST_US}


def _when(worker: WorkerState, update: worker_session_pb2.RequestUpdate, now_us: int) -> int:
    """When it happened: reports wait for each other, and take their time to come."""
    return now_us - update.decision.age_us - worker.pulse.one_way_us
