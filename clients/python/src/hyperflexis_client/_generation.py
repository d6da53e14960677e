"""What can be read off a generation at any moment, async or sync."""

from __future__ import annotations

import grpc

from hyperflexis_client._conversation import Conversation
from hyperflexis_client._errors import DeadlineExceeded
from hyperflexis_client._events import Accepted, Finished, Notice


class GenerationView:
    """The received part of a generation."""

    def __init__(self, conversation: Conversation, timeout_s: float | None) -> None:
        self._conversation = conversation
        self._timeout_s = timeout_s

    @property
    def request_id(self) -> str:
        """Empty until accepted."""
        return self._conversation.request_id

    @property
    def accepted(self) -> Accepted | None:
        return self._conversation.accepted

    @property
    def finished(self) -> Finished | None:
        return self._conversation.finished

    @property
    def notices(self) -> tuple[Notice, ...]:
        return tuple(self._conversation.notices)

    @property
    def text(self) -> str:
        """The text received so far."""
        return self._conversation.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The token ids received so far."""
        return self._conversation.token_ids

    @property
    def next_index(self) -> int:
        """Index of the next token to come."""
        return self._conversation.next_index

    @property
    def reconnections(self) -> int:
        """How often a stream was lost and another one opened."""
        return max(0, self._conversation.streams - 1)

    def _left_s(self, now_s: float, began_s: float) -> float | None:
        """Time left of `timeout_s`. Raises DeadlineExceeded when none is."""
        if self._timeout_s is None:
            return None
        left_s = began_s + self._timeout_s - now_s
        if left_s <= 0:
            raise DeadlineExceeded(f"not finished within {self._timeout_s:g} s", grpc.StatusCode.DEADLINE_EXCEEDED)
        return left_s
