"""One life of one worker, as the leader sees it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.step_time import StepShape, StepTimeModel
from hyperflexis_scheduler.core.heartbeat import Heartbeat
from hyperflexis_scheduler.core.ledger import DueWork, Ledger
from hyperflexis_scheduler.core.request import RequestState

PREFILL_US_PER_TOKEN = 20.0
"""Assumed until a worker reports its step-time model; only the comparison between workers matters."""

_PREFILLS = (capability_pb2.ROLE_UNSPECIFIED, capability_pb2.ROLE_MIXED, capability_pb2.ROLE_PREFILL)


class WorkerState:
    """Identity, session, health and work of a worker. Changes of `eligible` go through Fleet.refresh."""

    def __init__(self, register: worker_session_pb2.Register, session: int, now_us: int) -> None:
        self.key = WorkerKey.of(register.identity)
        self.attempts: dict[str, RequestState] = {}
        """Current attempts that are here and have not ended."""
        self.revocable: dict[str, RequestState] = {}
        """Those of them whose first chunk is not known to have run, oldest first."""
        self.ledger = Ledger()
        self.due = DueWork()
        self.load = worker_session_pb2.WorkerLoad()
        self.telemetry = worker_session_pb2.Telemetry()
        self.step_time = capability_pb2.StepTimeModel()
        self.us_per_token = PREFILL_US_PER_TOKEN
        self.draining = False
        self.drain_reason = ""
        self.undo_seq: int | None = None
        """A drain is to be undone, by this command of the session (0: not sent); None once the worker knows."""
        self.wanted_role = capability_pb2.ROLE_UNSPECIFIED
        self.hung = False
        self.gone = False
        """Lost for good: replaced, or away longer than its grace."""
        self.eligible = False
        self._busy_until_us = 0
        self._stepped_us = now_us
        self._steps = 0
        self.opened(register, session, now_us)

    def opened(self, register: worker_session_pb2.Register, session: int, now_us: int) -> None:
        """The same life on a new session; it is of no use before its Snapshot."""
        self.address = register.address
        self.model = register.model
        self.fingerprint = register.fingerprint
        self.gpu_type = register.gpu_type
        self.version = register.version
        self.tags = dict(register.tags)
        self.capabilities = register.capabilities
        self.role = register.role
        self.readiness = register.readiness
        self.session: int | None = session
        self.disconnected_us: int | None = None
        self.snapshotted = False
        self.sent_seq = 0
        self._behind_since_us: int | None = None
        self.report_seq = 0
        self.pulse = Heartbeat(now_us)
        self.ledger.restart()

    def command_lost(self, applied_seq: int, limit_us: int, now_us: int) -> bool:
        """Have reports been silent about the next command for too long? The last one before a pause leaves no
        gap that the worker could see."""
        if applied_seq >= self.sent_seq:
            self._behind_since_us = None
        elif self._behind_since_us is None or applied_seq > self.ledger.applied_seq:
            self._behind_since_us = now_us
        return self._behind_since_us is not None and now_us - self._behind_since_us > limit_us

    def closed(self, now_us: int) -> None:
        self.session = None
        self.undo_seq = None if self.undo_seq is None else 0
        self.snapshotted = False
        self.disconnected_us = now_us

    @property
    def connected(self) -> bool:
        return self.session is not None and self.snapshotted

    @property
    def accepts(self) -> bool:
        """May be given new work now."""
        return (
            self.connected
            and not (self.hung or self.draining or self.gone)
            and self.readiness == capability_pb2.READINESS_READY
            and self.role in _PREFILLS
        )

    @property
    def leaving(self) -> bool:
        return self.draining or self.readiness == capability_pb2.READINESS_DRAINING

    @property
    def requests(self) -> int:
        """Reports lag behind, and do not count what still waits for its Start: the larger view is right."""
        reported, granted = self.ledger.requests, len(self.attempts)
        return reported if reported > granted else granted

    def holds(self, tokens: int) -> bool:
        """Has the context for so many tokens."""
        return tokens <= (self.capabilities.context_length or tokens)

    def take(self, state: RequestState) -> None:
        """An attempt is here now; call again when its deadline becomes known."""
        self.attempts[state.request_id] = state
        if not state.ran:
            self.revocable[state.request_id] = state
        if state.known and not state.prefilled:
            self.due.add(state.request_id, state.deadline_us, state.prefill_tokens)

    def drop(self, request_id: str) -> None:
        self.attempts.pop(request_id, None)
        self.revocable.pop(request_id, None)
        self.due.remove(request_id)

    def report_load(self, load: worker_session_pb2.WorkerLoad, now_us: int) -> None:
        self.load = load
        if load.steps != self._steps or not load.waiting + load.running:
            self._stepped_us = now_us
        self._steps = load.steps

    def report_step_time(self, model: capability_pb2.StepTimeModel) -> None:
        self.step_time = model
        self.us_per_token = model.c2_us or PREFILL_US_PER_TOKEN

    def report_busy(self, for_us: int, now_us: int) -> None:
        self._busy_until_us = max(self._busy_until_us, now_us + for_us)

    def stalled(self, least_us: int, steps: float, now_us: int) -> bool:
        """Has work and makes no step for longer than `least_us` and `steps` predicted steps, undeclared."""
        if now_us < self._busy_until_us or not self.load.waiting + self.load.running:
            return False
        still_us = max(self.load.stalled_us, now_us - self._stepped_us)
        return still_us >= max(least_us, steps * self._predicted_step_us())

    def hang(self) -> None:
        self.hung = True
        self._hung_steps = self._steps

    def recovered(self, load: worker_session_pb2.WorkerLoad) -> bool:
        """It has stepped since, or its engine has let go of everything it was told to: an idle worker that
        would have to step first would never be given a reason to."""
        return load.steps != self._hung_steps or not (load.running or load.waiting)

    def forgive(self, gap_us: int, now_us: int) -> None:
        """This process slept: none of that time counts against the worker."""
        self.pulse.forgive(gap_us, now_us)
        self._stepped_us = min(now_us, self._stepped_us + gap_us)
        if self.disconnected_us is not None:
            self.disconnected_us = min(now_us, self.disconnected_us + gap_us)
        if self._behind_since_us is not None:
            self._behind_since_us = min(now_us, self._behind_since_us + gap_us)

    def _predicted_step_us(self) -> float:
        model = self.step_time
        if not model.c0_us:
            return 0.0
        chunk = min(self.load.queued_prefill_tokens, self.capabilities.max_num_tokens)
        shape = StepShape(
            prefill_chunks=((chunk, 0),) if chunk else (),
            decodes=self.load.running,
            decode_context_tokens=self.load.decode_context_tokens,
        )
        coefficients = (model.c0_us, model.c1_us, model.c2_us, model.c3_us, model.c4_us, model.c5_us, model.host_us)
        return StepTimeModel(*coefficients).predict_us(shape)


def work_due_us(workers: Iterable[WorkerState], deadline_us: int) -> list[float]:
    """For each, the predicted prefill time of what is due before a deadline; work of unknown deadline counts as due."""
    found = []
    for worker in workers:
        # Every worker at every decision: one call more for each costs a tenth of it all.
        due = worker.due
        before = (due.sums or due.sum())[bisect_right(due.deadlines, deadline_us)]
        queued = worker.ledger.queued_tokens
        if queued > due.total:
            before += queued - due.total
        found.append(before * worker.us_per_token)
    return found
