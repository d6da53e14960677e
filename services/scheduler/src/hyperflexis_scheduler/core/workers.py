"""The life of workers: registered, heard of, silent, hung, gone."""

from __future__ import annotations

from collections.abc import Iterable

from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_scheduler.core.actions import Actions
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.fingerprints import Verdict
from hyperflexis_scheduler.core.grants import Grants
from hyperflexis_scheduler.core.memory import WorkerRecord
from hyperflexis_scheduler.core.moves import Moves
from hyperflexis_scheduler.core.reports import Reports
from hyperflexis_scheduler.core.snapshot import Snapshots
from hyperflexis_scheduler.core.worker import WorkerState

_Rejected = worker_session_pb2.Rejected


class Workers:
    def __init__(self, cell: Cell, grants: Grants, moves: Moves, reports: Reports, actions: Actions) -> None:
        self._cell = cell
        self._grants = grants
        self._moves = moves
        self._reports = reports
        self._actions = actions
        self._snapshots = Snapshots(cell, grants, moves)

    def opened(self, session: int, register: worker_session_pb2.Register, now_us: int) -> None:
        cell = self._cell
        cell.heard_fence(register.highest_fence)
        refusal = self._refusal(register, now_us)
        if refusal is not None:
            cell.tell(session, rejected=refusal)
            cell.close(session, refusal.message, refusal.permanent)
            return
        key = WorkerKey.of(register.identity)
        worker = cell.fleet.by_id.get(key.worker_id)
        if worker is not None and (worker.key != key or worker.model != register.model):
            self._gone(worker, "replaced", now_us)
            worker = None
        if cell.fleet.lives.joined(key):
            cell.remember()
        if worker is None:
            worker = WorkerState(register, session, now_us, cell.fleet.loads)
            cell.fleet.add(worker)
        else:
            if worker.session is not None:
                self._disconnect(worker, "a newer session of this worker is open", now_us)
            worker.opened(register, session, now_us)
            cell.fleet.refresh(worker)
            cell.fleet.pools[worker.model].resize()
            cell.fleet.announce(worker)
        cell.fleet.by_session[session] = worker
        registered = worker_session_pb2.Registered(fence=cell.fence, report_interval_us=cell.rules.report_interval_us)
        cell.tell(session, registered=registered)

    def message(self, worker: WorkerState, request: worker_session_pb2.WorkerSessionRequest, now_us: int) -> None:
        worker.pulse.heard_us = now_us
        kind = request.WhichOneof("message")
        if kind == "pong":
            worker.pulse.pong(request.pong.id, now_us)
            self._cell.heard_fence(request.pong.highest_fence)
        elif kind == "snapshot":
            self._snapshot(worker, request.snapshot, now_us)
        elif kind == "report" and worker.snapshotted:
            self._report(worker, request.report, now_us)
        else:
            self._disconnect(worker, f"{kind or 'an empty message'} where a snapshot or report was expected", now_us)

    def closed(self, worker: WorkerState, now_us: int) -> None:
        """Its grace begins."""
        assert worker.session is not None
        self._cell.fleet.by_session.pop(worker.session, None)
        worker.closed(now_us)
        self._cell.fleet.refresh(worker)

    def watch(self, now_us: int) -> None:
        """Silence, and the end of graces."""
        rules = self._cell.rules
        for worker in self._cell.fleet:
            if worker.session is not None and worker.pulse.silent(rules.silence_us, now_us):
                self._disconnect(worker, "silent for too long", now_us)
            if worker.session is not None:
                ping = worker.pulse.ping(rules.ping_us, now_us)
                if ping is not None:
                    self._cell.tell(worker.session, ping=ping)
            elif worker.disconnected_us is not None and now_us - worker.disconnected_us >= rules.grace_us:
                self._gone(worker, "worker_gone", now_us)
        self._cell.fleet.lives.expire(now_us)

    def forgive(self, gap_us: int, now_us: int) -> None:
        for worker in self._cell.fleet:
            worker.forgive(gap_us, now_us)

    def learn(self, records: Iterable[WorkerRecord], now_us: int) -> None:
        """What the leader before knew of its workers."""
        for worker in self._cell.fleet.learn(records, now_us):
            if worker.session is not None:
                message = _other_fingerprint(worker.model)
                rejected = _Rejected(reason=_Rejected.REASON_FINGERPRINT, message=message, permanent=False)
                self._cell.tell(worker.session, rejected=rejected)
            self._gone(worker, "fingerprint", now_us)

    def _refusal(self, register: worker_session_pb2.Register, now_us: int) -> worker_session_pb2.Rejected | None:
        """Why this worker cannot join, if so."""
        key = WorkerKey.of(register.identity)
        fits = self._cell.fleet.fits(key.worker_id, register.model, register.fingerprint, now_us)
        permanent = True
        if register.protocol_version != PROTOCOL_VERSION:
            reason = _Rejected.REASON_PROTOCOL_VERSION
            message = f"protocol {register.protocol_version} is not {PROTOCOL_VERSION}; install a matching release"
        elif not (key.worker_id and key.incarnation and register.address and register.model):
            reason = _Rejected.REASON_INVALID
            message = "worker_id, incarnation, address and model are required"
        elif self._cell.fleet.lives.is_retired(key):
            reason = _Rejected.REASON_INCARNATION
            message = f"another process has taken the id {key.worker_id!r}; start anew"
        elif fits is not Verdict.FITS:
            reason, message = _Rejected.REASON_FINGERPRINT, _other_fingerprint(register.model)
            permanent = fits is Verdict.NEVER
        else:
            return None
        return _Rejected(reason=reason, message=message, permanent=permanent)

    def _snapshot(self, worker: WorkerState, snapshot: worker_session_pb2.Snapshot, now_us: int) -> None:
        if worker.hung and worker.recovered(snapshot.load):
            worker.hung = False
        worker.snapshotted = True
        worker.reported(0, snapshot.load, now_us)
        self._snapshots.reconcile(worker, snapshot, now_us)
        self._reports.standing(worker, snapshot.role, snapshot.readiness)
        self._actions.repeat_standing(worker)
        self._cell.fleet.awaited.discard(worker.key.worker_id)

    def _report(self, worker: WorkerState, report: worker_session_pb2.Report, now_us: int) -> None:
        if report.report_seq <= worker.report_seq:
            return
        if report.report_seq != worker.report_seq + 1:
            self._disconnect(worker, f"reports {worker.report_seq + 1} to {report.report_seq - 1} are missing", now_us)
            return
        rules = self._cell.rules
        if worker.command_lost(report.applied_seq, rules.command_lost_us, now_us):
            self._disconnect(worker, f"command {report.applied_seq + 1} never came: come back with a snapshot", now_us)
            return
        self._reports.report(worker, report, now_us)
        self._actions.applied(worker, report.applied_seq)
        if worker.hung:
            if worker.recovered(worker.load):
                self._disconnect(worker, "it steps again: come back with a snapshot", now_us)
        elif worker.stalled(rules.hung_us, rules.hung_steps, now_us):
            worker.hang()
            self._cell.fleet.refresh(worker)
            self._lose_all(worker, "worker_hung", now_us)

    def _disconnect(self, worker: WorkerState, reason: str, now_us: int) -> None:
        assert worker.session is not None
        self._cell.close(worker.session, reason)
        self.closed(worker, now_us)

    def _gone(self, worker: WorkerState, reason: str, now_us: int) -> None:
        if worker.session is not None:
            self._disconnect(worker, reason, now_us)
        self._lose_all(worker, reason, now_us)
        self._cell.fleet.remove(worker, now_us)

    def _lose_all(self, worker: WorkerState, reason: str, now_us: int) -> None:
        self._moves.target_gone(worker, reason, now_us)
        for state in list(worker.attempts.values()):
            self._grants.cancel_attempt(state, reason)
            self._grants.lose(state, reason, now_us)


def _other_fingerprint(model: str) -> str:
    return (
        f"other workers of model {model!r} have another fingerprint: weights, dtype, tokenizer and sampling must be "
        "the same"
    )
