"""The engine as it was at its last step, and what it has been given since."""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_worker.core.engine_event import EngineEvent


class EngineView:
    """`total_blocks` counts the one block that belongs to nobody; the load that is reported does not."""

    def __init__(self, total_blocks: int, block_tokens: int, block_bytes: int) -> None:
        self._total_blocks = total_blocks - 1
        self._block_tokens = block_tokens
        self._block_bytes = block_bytes
        self._event = EngineEvent(free_blocks=self._total_blocks)
        self._stepped_us = 0
        self._adds = 0
        self._unanswered: dict[int, int] = {}
        """By number, oldest first: tokens to prefill of adds that the engine has not answered yet."""
        self.up = True
        """It serves. While it does not, nothing is given to it: there is nobody who would take it."""

    @property
    def busy(self) -> bool:
        return bool(self._event.waiting or self._event.running or self._unanswered)

    def add(self, prefill_tokens: int, now_us: int) -> int:
        """A sequence goes to the engine; returns the number of this add."""
        assert self.up, "what is sent to no engine is never answered"
        if not self.busy:
            self._stepped_us = now_us  # it was idle: the stall, if one comes, begins now
        self._adds += 1
        self._unanswered[self._adds] = prefill_tokens
        return self._adds

    def drop(self, number: int) -> None:
        """An add was taken back. It is no work any more, but the engine still owes its answer: an engine that hangs
        must not look idle, and be given more, because all it was given has been cancelled."""
        if number in self._unanswered:
            self._unanswered[number] = 0

    def stepped(self, event: EngineEvent, now_us: int) -> None:
        self._event = event
        self._stepped_us = now_us
        while self._unanswered and (oldest := next(iter(self._unanswered))) <= event.adds_applied:
            del self._unanswered[oldest]

    def lost(self) -> None:
        """The next engine begins empty."""
        self.up = False
        self._unanswered.clear()
        self._event = EngineEvent(adds_applied=self._adds, free_blocks=self._total_blocks)

    def ready(self, now_us: int) -> None:
        """A new engine serves; nothing that passed before counts against it."""
        self.up = True
        self._stepped_us = now_us

    def load(self, now_us: int) -> worker_session_pb2.WorkerLoad:
        """What the engine has to do. `stalled_us`, in steps of 100 ms: how long it has had work and not stepped."""
        event, unanswered = self._event, sum(self._unanswered.values())
        # What has only just been sent has not been looked at by the engine: as long, for each token, as what has.
        us_per_token = event.queued_prefill_us / event.queued_prefill_tokens if event.queued_prefill_tokens else 0.0
        unanswered_us = int(unanswered * us_per_token)
        return worker_session_pb2.WorkerLoad(
            waiting=event.waiting + len(self._unanswered),
            running=event.running,
            queued_prefill_tokens=event.queued_prefill_tokens + unanswered,
            queued_prefill_us=event.queued_prefill_us + unanswered_us,
            queued_before_us=[before_us + unanswered_us for before_us in event.queued_before_us],
            prefill_share=round(event.prefill_share, 2),
            pace=round(event.pace, 2),
            decode_context_tokens=event.decode_context_tokens,
            kv=capability_pb2.KvPoolStats(
                total_blocks=self._total_blocks,
                free_blocks=event.free_blocks,
                block_tokens=self._block_tokens,
                leased_blocks=event.leased_blocks,
                quarantined_blocks=event.quarantined_blocks,
                reserved_blocks=event.reserved_blocks,
                block_bytes=self._block_bytes,
            ),
            steps=event.steps,
            stalled_us=max(now_us - self._stepped_us, 0) // 100_000 * 100_000 if self.busy else 0,
        )
