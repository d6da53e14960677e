"""The engine as it was at its last step, and what it has been given since."""

from __future__ import annotations

from collections import deque

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_worker.core.engine_event import EngineEvent


class EngineView:
    """`total_blocks` counts the one block that belongs to nobody; the load that is reported does not."""

    def __init__(self, total_blocks: int, block_tokens: int) -> None:
        self._total_blocks = total_blocks - 1
        self._block_tokens = block_tokens
        self._event = EngineEvent(free_blocks=self._total_blocks)
        self._stepped_us = 0
        self._adds = 0
        self._unseen: deque[tuple[int, int]] = deque()
        """(number, tokens to prefill) of adds the engine has not answered yet."""

    @property
    def busy(self) -> bool:
        return bool(self._event.waiting or self._event.running or self._unseen)

    def add(self, prefill_tokens: int, now_us: int) -> int:
        """A sequence goes to the engine; returns the number of this add."""
        if not self.busy:
            self._stepped_us = now_us  # it was idle: the stall, if one comes, begins now
        self._adds += 1
        self._unseen.append((self._adds, prefill_tokens))
        return self._adds

    def stepped(self, event: EngineEvent, now_us: int) -> None:
        self._event = event
        self._stepped_us = now_us
        while self._unseen and self._unseen[0][0] <= event.adds_applied:
            self._unseen.popleft()

    def lost(self) -> None:
        """The next engine begins empty."""
        self._unseen.clear()
        self._event = EngineEvent(adds_applied=self._adds, free_blocks=self._total_blocks)

    def load(self, now_us: int) -> worker_session_pb2.WorkerLoad:
        """What the engine has to do. `stalled_us`, in steps of 100 ms: how long it has had work and not stepped."""
        event = self._event
        return worker_session_pb2.WorkerLoad(
            waiting=event.waiting + len(self._unseen),
            running=event.running,
            queued_prefill_tokens=event.queued_prefill_tokens + sum(tokens for _, tokens in self._unseen),
            decode_context_tokens=event.decode_context_tokens,
            kv=capability_pb2.KvPoolStats(
                total_blocks=self._total_blocks, free_blocks=event.free_blocks, block_tokens=self._block_tokens
            ),
            steps=event.steps,
            stalled_us=max(now_us - self._stepped_us, 0) // 100_000 * 100_000 if self.busy else 0,
        )
