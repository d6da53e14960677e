"""One generation across any number of streams. Pure: events in, typed events and the next call out."""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis_client._details import Details
from hyperflexis_client._errors import HyperFlexisError, InternalError, ProtocolError, Refused
from hyperflexis_client._events import Accepted, Delta, Event, Finished, FinishReason, Notice, Result
from hyperflexis_client._tokens import pack

MAX_TAIL_TOKENS = 4_096
"""Of its own last tokens the client sends at most this many with Resume."""


class Conversation:
    """What the client knows of one request: enough to check every event and to resume anywhere.

    Begin with the GenerateRequest, or with `resuming` for a request that somebody else began.
    """

    def __init__(self, request: wire.GenerateRequest) -> None:
        self._request: wire.GenerateRequest | None = request
        self._detach_grace_ms = request.detach_grace_ms
        self._known: list[int] = []
        self._received_from = 0
        self._text: list[str] = []
        self._opened = False
        self._carries_request = False
        self.request_id = ""
        self.next_index = 0
        self.accepted: Accepted | None = None
        self.finished: Finished | None = None
        self.notices: list[Notice] = []
        self.streams = 0

    @classmethod
    def resuming(cls, request_id: str, next_index: int, tail: Sequence[int], detach_grace_ms: int) -> Conversation:
        """Raises ValueError where the tail is longer than the output it ends."""
        if len(tail) > next_index:
            raise ValueError(f"a tail of {len(tail)} tokens cannot end at index {next_index}")
        conversation = cls(wire.GenerateRequest(detach_grace_ms=detach_grace_ms))
        conversation._request = None
        conversation._known = list(tail)
        conversation._received_from = len(tail)
        conversation.request_id = request_id
        conversation.next_index = next_index
        return conversation

    @property
    def text(self) -> str:
        """All text received."""
        return "".join(self._text)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All token ids received; those of a given tail are not among them."""
        return tuple(self._known[self._received_from :])

    def next_call(self) -> wire.GenerateRequest | wire.ResumeRequest:
        """The request that opens the next stream: Generate until a router accepted it, Resume from then on."""
        self._opened = False
        self.streams += 1
        if self._request is not None and not self.request_id:
            return self._request
        resume = wire.ResumeRequest(
            request_id=self.request_id,
            next_index=self.next_index,
            tail=wire.TokenIds(packed=pack(self._known if self._carries_request else self._known[-MAX_TAIL_TOKENS:])),
            detach_grace_ms=self._detach_grace_ms,
        )
        if self._carries_request and self._request is not None and self.accepted is not None:
            resume.original.CopyFrom(self._request)
            resume.original.sampling.seed = self.accepted.seed
            resume.original.sampling.max_tokens = self.accepted.max_tokens
        return resume

    def carry_request(self) -> bool:
        """From here on Resume brings the request itself, for routers that have no record of it. True where that
        is new; False where it was so already, or this client did not begin the request."""
        if self._carries_request or self._request is None or self.accepted is None:
            return False
        self._carries_request = True
        return True

    def events(self, event: wire.StreamEvent) -> list[Event]:
        """What the caller sees of a message; the text that was held back to the end comes as a delta of its own."""
        taken = self.take(event)
        held_back = event.finished.text
        if isinstance(taken, Finished) and held_back:
            self._text.append(held_back)
            return [Delta(self.next_index, (), held_back), taken]
        return [] if taken is None else [taken]

    def take(self, event: wire.StreamEvent) -> Event | None:
        """The typed event, or None where a resumption only repeats Accepted. Raises ProtocolError."""
        match event.WhichOneof("event"):
            case "accepted":
                return self._take_accepted(Accepted.of(event.accepted))
            case "delta":
                self._require_open("Delta")
                return self._take_delta(event.delta)
            case "notice":
                self._require_open("Notice")
                notice = Notice.of(event.notice)
                self.notices.append(notice)
                return notice
            case "finished":
                self._require_open("Finished")
                return self._take_finished(Finished.of(event.finished))
        return None  # an event of a newer protocol: not for us

    def _take_accepted(self, accepted: Accepted) -> Accepted | None:
        if self._opened:
            raise ProtocolError("Accepted came twice on one stream")
        if not accepted.request_id:
            raise ProtocolError("Accepted without a request id")
        if self.request_id and accepted.request_id != self.request_id:
            raise ProtocolError(f"resumed {self.request_id}, but the stream is of {accepted.request_id}")
        if accepted.next_index != self.next_index:
            raise ProtocolError(f"the stream begins at index {accepted.next_index}, expected {self.next_index}")
        self._opened = True
        self.request_id = accepted.request_id
        if self.accepted is not None:
            return None
        self.accepted = accepted
        return accepted

    def _take_delta(self, message: wire.Delta) -> Delta:
        if len(message.token_ids.packed) % 4:
            raise ProtocolError(f"Delta at index {message.start_index}: token ids must be a multiple of 4 bytes")
        delta = Delta.of(message)
        gap = delta.start_index - self.next_index
        if gap:
            says = f"{'missing' if gap > 0 else 'repeated'} tokens: Delta at index {delta.start_index}"
            repeated = min(-gap, len(delta.token_ids)) if gap < 0 else 0
            raise ProtocolError(f"{says}, expected {self.next_index}", repeated=repeated, missing=max(gap, 0))
        self._known.extend(delta.token_ids)
        self.next_index += len(delta.token_ids)
        self._text.append(delta.text)
        return delta

    def _take_finished(self, finished: Finished) -> Finished:
        if finished.reason.complete and finished.output_tokens != self.next_index:
            says = f"finished with {finished.output_tokens} tokens, received {self.next_index}"
            raise ProtocolError(says, missing=max(finished.output_tokens - self.next_index, 0))
        self.finished = finished
        return finished

    def _require_open(self, name: str) -> None:
        if not self._opened:
            raise ProtocolError(f"{name} came before Accepted")
        if self.finished is not None:
            raise ProtocolError(f"{name} came after Finished")

    def result(self) -> Result:
        """The whole generation. Raises Refused or InternalError where it ended so."""
        if self.finished is None:
            raise HyperFlexisError("the generation has not finished")
        if self.finished.reason is FinishReason.REFUSED:
            hint = self.finished.retry_after_us / 1e6 if self.finished.retry_after_us else None
            message = self.finished.message or "refused: the tier's promise could not be kept"
            raise Refused(message, details=Details(retry_after_s=hint))
        if self.finished.reason is FinishReason.ERROR:
            raise InternalError(self.finished.message or "the generation failed")
        return Result(self.request_id, self.text, self.token_ids, self.finished, tuple(self.notices))
