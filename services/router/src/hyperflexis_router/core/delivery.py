"""One client stream, and what is measured of a request.

A stream holds no queue of deltas: it holds an index. Whenever the client can take more, the next delta is made
from the committed tokens, so a reader may be as slow as it likes and costs nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis_common.tokens import TOKEN_BYTES
from hyperflexis_common.verdict import Outcome
from hyperflexis_router.core.logprobs import Logprobs

COALESCE_US = 10_000
DELTA_TOKENS = 1_024
"""A delta that catches up carries at most this many tokens."""
NOTICE_LIMIT = 64
PAUSES_KEPT = 4

TextBetween = Callable[[int, int], str]
"""(start, end) -> text of tokens [start, end)."""


class ClientStream:
    """What one client has been sent: contiguous deltas, notices, and at the end exactly one Finished."""

    def __init__(self, next_index: int, tpot_us: int, text_between: TextBetween | None) -> None:
        self.next_index = next_index
        self._window_us = min(COALESCE_US, tpot_us // 4)
        self._text_between = text_between
        self._not_before_us = 0
        self._notices: deque[inference_service_pb2.Notice] = deque(maxlen=NOTICE_LIMIT)
        self.done = False

    def notice(self, notice: inference_service_pb2.Notice) -> None:
        """Notices beyond the limit push the oldest out."""
        self._notices.append(notice)

    def wait_us(self, available: int, over: bool, now_us: int) -> int | None:
        """How long until `next_event` has something; None = not before more happens."""
        if self.done:
            return None
        if over or self._notices:
            return 0
        return max(0, self._not_before_us - now_us) if available > self.next_index else None

    def next_event(
        self,
        output: bytes | bytearray,
        available: int,
        finished: inference_service_pb2.Finished | None,
        now_us: int,
        logprobs: Logprobs = (),
    ) -> inference_service_pb2.StreamEvent | None:
        """The next thing to send, given output tokens [0, available) and their logprobs, if asked for. None = wait."""
        wait = self.wait_us(available, finished is not None, now_us)
        if wait is None or wait > 0:
            return None
        if self._notices:
            return inference_service_pb2.StreamEvent(notice=self._notices.popleft())
        start, end = self.next_index, min(available, self.next_index + DELTA_TOKENS)
        if end > start:
            text = self._text_between(start, end) if self._text_between else ""
            self.next_index = end
            self._not_before_us = now_us + self._window_us
            delta = inference_service_pb2.Delta(
                start_index=start, text=text, logprobs=logprobs[start : self.next_index]
            )
            delta.token_ids.packed = bytes(output[start * TOKEN_BYTES : self.next_index * TOKEN_BYTES])
            return inference_service_pb2.StreamEvent(delta=delta)
        assert finished is not None
        self.done = True
        return inference_service_pb2.StreamEvent(finished=finished)


class Measured:
    """When tokens were queued to the client, in microseconds since the full request was received."""

    def __init__(self, received_us: int, first_us: int | None = None, next_index: int = 0) -> None:
        """`first_us`: of the first token, where an earlier owner has queued it; `next_index`: of the first one here."""
        self._received_us = received_us
        self.first_us = first_us
        self._last_us = first_us
        self.max_gap_us = 0
        self.tokens = 0
        self._next_index = next_index
        self._pauses: list[inference_service_pb2.Pause] = []

    def queued(self, tokens: int, now_us: int) -> None:
        at = now_us - self._received_us
        if self._last_us is None:
            self.first_us = at
        else:
            self._paused(self._last_us, at - self._last_us)
        self._last_us = at
        self.tokens += tokens
        self._next_index += tokens

    def _paused(self, began_us: int, length_us: int) -> None:
        self.max_gap_us = max(self.max_gap_us, length_us)
        pauses = self._pauses
        if len(pauses) == PAUSES_KEPT:
            shortest = min(pauses, key=lambda pause: pause.length_us)
            if length_us <= shortest.length_us:
                return
            pauses.remove(shortest)
        pauses.append(inference_service_pb2.Pause(began_us=began_us, length_us=length_us, next_index=self._next_index))

    def proto(self) -> inference_service_pb2.Measured:
        return inference_service_pb2.Measured(
            first_token_us=self.first_us or 0, last_token_us=self._last_us or 0, pauses=self._pauses
        )

    @property
    def ttft_us(self) -> int:
        """0 where no token was ever queued."""
        return self.first_us or 0

    def outcome(
        self, reason: sampling_pb2.FinishReason.ValueType, output_tokens: int, downgraded: bool, now_us: int
    ) -> Outcome:
        return Outcome(
            reason, output_tokens, self.first_us, self._last_us, now_us - self._received_us, downgraded=downgraded
        )
