"""The pulse of one session: pings, silence, and the one-way delay that ages are corrected by."""

from __future__ import annotations

from hyperflexis.scheduler.v1 import router_session_pb2

_SMOOTHING = 0.2


class Heartbeat:
    def __init__(self, now_us: int) -> None:
        self.heard_us = now_us
        self.one_way_us = 0
        self._ping_id = 0
        self._pinged_us = now_us
        self._unanswered = False

    def ping(self, every_us: int, now_us: int) -> router_session_pb2.Ping | None:
        """The next Ping if it is due."""
        if self._ping_id and now_us - self._pinged_us < every_us:
            return None
        self._ping_id += 1
        self._pinged_us = now_us
        self._unanswered = True
        return router_session_pb2.Ping(id=self._ping_id, one_way_delay_us=self.one_way_us)

    def pong(self, ping_id: int, now_us: int) -> None:
        """Half of the round trip, smoothed; a late answer to an older ping measures nothing."""
        if not self._unanswered or ping_id != self._ping_id:
            return
        self._unanswered = False
        sample = (now_us - self._pinged_us) // 2
        self.one_way_us = (
            sample if not self.one_way_us else int(self.one_way_us + _SMOOTHING * (sample - self.one_way_us))
        )

    def silent(self, limit_us: int, now_us: int) -> bool:
        return now_us - self.heard_us >= limit_us

    def forgive(self, gap_us: int, now_us: int) -> None:
        """This process slept for `gap_us`: that silence was ours, and the open ping measures nothing."""
        self.heard_us = min(now_us, self.heard_us + gap_us)
        self._unanswered = False
