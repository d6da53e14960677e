"""The session with the scheduler that leads: fence, silence, and what could not be said while it was down."""

from __future__ import annotations

from collections import deque

from hyperflexis.common.v1 import identity_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis_router.core.effects import DropScheduler, Effect, ToScheduler
from hyperflexis_router.core.timing import RouterTiming

UNSENT_LIMIT = 16_384


class SchedulerSession:
    """What the router knows of the leader. Messages sent while it is closed are dropped, but for ends."""

    def __init__(self, timing: RouterTiming) -> None:
        self._timing = timing
        self.open = False
        self.closed_since_us = 0
        self.highest_fence = identity_pb2.Fence()
        self._heard_us = 0
        # Ends that happened without a session: told at the next, or else held requests would run for nobody.
        self._unsent: deque[router_session_pb2.RouterSessionRequest] = deque(maxlen=UNSENT_LIMIT)

    def opened(self, now_us: int, out: list[Effect]) -> None:
        self.open = True
        self._heard_us = now_us
        while self._unsent:
            out.append(ToScheduler(self._unsent.popleft()))

    def closed(self, now_us: int) -> None:
        if self.open:
            self.open = False
            self.closed_since_us = now_us

    def send(self, message: router_session_pb2.RouterSessionRequest, out: list[Effect]) -> bool:
        """False where there is no session to send on."""
        if self.open:
            out.append(ToScheduler(message))
        return self.open

    def send_end(self, message: router_session_pb2.RouterSessionRequest, out: list[Effect]) -> None:
        """A Cancel or RequestsDone: sent now or at the next session."""
        if not self.send(message, out):
            self._unsent.append(message)

    def heard(self, message: router_session_pb2.RouterSessionResponse, now_us: int, out: list[Effect]) -> bool:
        """Checks the fence of a message from the scheduler; False = do not act on it."""
        if message.epoch < self.highest_fence.epoch:
            out.append(DropScheduler(f"epoch {message.epoch} is below {self.highest_fence.epoch}, which has led since"))
            return False
        self._heard_us = now_us
        if message.epoch > self.highest_fence.epoch:
            self.highest_fence = identity_pb2.Fence(epoch=message.epoch)
        kind = message.WhichOneof("message")
        fence = message.welcome.fence if kind == "welcome" else message.not_leader.fence
        if kind in ("welcome", "not_leader") and fence.epoch >= self.highest_fence.epoch:
            self.highest_fence.CopyFrom(fence)
        if kind == "not_leader":
            out.append(DropScheduler("the scheduler no longer leads"))
            return False
        return True

    def pong(self, ping: router_session_pb2.Ping, out: list[Effect]) -> None:
        pong = router_session_pb2.Pong(id=ping.id, highest_fence=self.highest_fence)
        self.send(router_session_pb2.RouterSessionRequest(pong=pong), out)

    def tick(self, now_us: int, out: list[Effect]) -> None:
        if self.open and now_us - self._heard_us >= self._timing.session_silence_us:
            self._heard_us = now_us
            out.append(DropScheduler(f"silent for {self._timing.session_silence_us // 1_000} ms"))
