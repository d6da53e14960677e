"""Does a worker whose process lives still answer?"""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.scheduler.v1 import scheduler_service_pb2
from hyperflexis_scaler.core.group import Limits


@dataclass(slots=True)
class Health:
    """Timers of one worker. They run only while the view of the cluster is fresh."""

    joined: bool = False
    absent_since_us: int | None = None
    hung_since_us: int | None = None

    def observe(self, now_us: int, worker: scheduler_service_pb2.ClusterWorker | None, fresh: bool) -> None:
        """What the cluster shows of it; `worker` None = nothing."""
        if not fresh:
            self.absent_since_us = self.hung_since_us = None
            return
        self.joined = self.joined or worker is not None
        self.absent_since_us = _since(self.absent_since_us, worker is None, now_us)
        self.hung_since_us = _since(self.hung_since_us, worker is not None and worker.hung, now_us)

    def ailment(self, now_us: int, age_us: int, limits: Limits) -> str:
        """Why it has to be replaced; empty = it has not."""
        if self.hung_since_us is not None and now_us - self.hung_since_us > limits.hung_us:
            return f"hung for more than {limits.hung_us / 1e6:g} s"
        if self.absent_since_us is None:
            return ""
        # One found running may have joined before anybody here could see it.
        joined = self.joined or age_us > limits.start_us
        limit_us = limits.hung_us if joined else limits.start_us
        if now_us - self.absent_since_us <= limit_us:
            return ""
        return f"{'left' if joined else 'never joined'} the cluster, for more than {limit_us / 1e6:g} s"

    def absent_for(self, now_us: int) -> int:
        """Microseconds that it has certainly been missing."""
        return 0 if self.absent_since_us is None else now_us - self.absent_since_us


def _since(since_us: int | None, holds: bool, now_us: int) -> int | None:
    if not holds:
        return None
    return now_us if since_us is None else since_us
