"""What the scheduler hears of this worker, and how often."""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2, slo_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_common.attempt import Attempt

NEWS_INTERVAL_US = 20_000
"""Updates go at once, as requests wait for them elsewhere; those that follow a report within this go together."""
LOAD_INTERVAL_US = 100_000
"""Between two reports of a changed load alone."""

Standing = tuple[capability_pb2.Role.ValueType, capability_pb2.Readiness.ValueType]


class Reporter:
    """Collects updates of a session and decides when a Report is due."""

    def __init__(self) -> None:
        self.applied_seq = 0
        self.interval_us = 1_000_000
        self._report_seq = 0
        self._updates: list[tuple[worker_session_pb2.RequestUpdate, int | None]] = []
        """With when it happened, where that is to be told."""
        self._at_once = False
        self._sent_us = 0
        self._sent_load = b""
        self._sent_standing: Standing | None = None

    def begin(self, interval_us: int, load: worker_session_pb2.WorkerLoad, standing: Standing, now_us: int) -> None:
        """A new session: the Snapshot that goes first says all that pending updates would."""
        self.applied_seq = 0
        self.interval_us = interval_us or self.interval_us
        self._report_seq = 0
        self._updates = []
        self._at_once = False
        self._sent(load, standing, now_us)

    def update(
        self,
        request_id: str,
        attempt: Attempt,
        kind: worker_session_pb2.RequestUpdate.Kind.ValueType,
        output_tokens: int = 0,
        decision: slo_pb2.Decision | None = None,
        at_us: int | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        """`at_us`: when it happened, for those who ask later how a request went. `at_once`: it stands still until the
        scheduler has heard of this."""
        self._at_once |= at_once
        update = worker_session_pb2.RequestUpdate(
            request_id=request_id,
            attempt=attempt.proto(),
            kind=kind,
            output_tokens=output_tokens,
            decision=decision,
        )
        self._updates.append((update, at_us))

    def reject(self, request_id: str, attempt: Attempt, reason: str) -> None:
        decision = slo_pb2.Decision(kind="reject", reason=reason)
        self.update(request_id, attempt, worker_session_pb2.RequestUpdate.KIND_REJECTED, decision=decision)

    def not_started(self, request_id: str, attempt: Attempt, missing: str) -> None:
        """`missing`: run or start, whichever did not come."""
        decision = slo_pb2.Decision(kind="not_started", reason=f"no_{missing}")
        self.update(request_id, attempt, worker_session_pb2.RequestUpdate.KIND_NOT_STARTED, decision=decision)

    def ripe(self, standing: Standing, now_us: int) -> bool:
        """Is it worth asking `due`?"""
        if self._at_once or standing != self._sent_standing:
            return True  # rare, and until it is known requests come that must go elsewhere, or wait for no reason
        return now_us - self._sent_us >= (NEWS_INTERVAL_US if self._updates else LOAD_INTERVAL_US)

    def due(self, load: worker_session_pb2.WorkerLoad, standing: Standing, now_us: int) -> bool:
        if not self.ripe(standing, now_us):
            return False
        if self._updates or standing != self._sent_standing or now_us - self._sent_us >= self.interval_us:
            return True
        return load.SerializeToString() != self._sent_load

    def report(
        self,
        load: worker_session_pb2.WorkerLoad,
        standing: Standing,
        now_us: int,
    ) -> worker_session_pb2.Report:
        self._report_seq += 1
        updates, self._updates = self._updates, []
        self._at_once = False
        for update, at_us in updates:
            if at_us is not None and now_us > at_us:
                update.decision.age_us = now_us - at_us
        self._sent(load, standing, now_us)
        role, readiness = standing
        return worker_session_pb2.Report(
            report_seq=self._report_seq,
            applied_seq=self.applied_seq,
            updates=[update for update, _ in updates],
            load=load,
            readiness=readiness,
            role=role,
        )

    def _sent(self, load: worker_session_pb2.WorkerLoad, standing: Standing, now_us: int) -> None:
        self._sent_us = now_us
        self._sent_load = load.SerializeToString()
        self._sent_standing = standing
