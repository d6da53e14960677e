"""A request that this router holds: its output, its client, its record's progress."""

from __future__ import annotations

import asyncio
import dataclasses

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis_common.tokens import TOKEN_BYTES, count, unpack
from hyperflexis_common.verdict import verdict
from hyperflexis_router.core.delivery import ClientStream, Measured
from hyperflexis_router.core.effects import Ended
from hyperflexis_router.core.logprobs import UNKNOWN, Logprobs
from hyperflexis_router.core.submission import NewRequest, ResumedRequest
from hyperflexis_router.core.text import OutputText
from hyperflexis_router.store import Origin


class Attached:
    """One client's stream on a request. `changed` is set whenever there may be something to do."""

    def __init__(self, stream: ClientStream) -> None:
        self.stream = stream
        self.changed = asyncio.Event()
        self.superseded = False
        """A newer stream of the same request took its place."""


class LiveRequest:
    """Owned by one router; `released` once another one has it."""

    def __init__(
        self, new: NewRequest, origin: Origin, text: OutputText | None, first_token_us: int | None = None
    ) -> None:
        self.new: NewRequest | ResumedRequest = new
        self.origin = origin
        self.prompt_tokens = new.prompt_tokens
        self.packed = bytearray(new.committed if isinstance(new, ResumedRequest) else b"")
        self.logprobs: list[inference_service_pb2.TokenLogprobs] | None = None
        """Of every committed token, where the request asked for them."""
        if new.sampling.HasField("logprobs"):
            self.logprobs = [UNKNOWN] * self.committed_tokens
        self.text = text
        self.measured = Measured(new.received_us, first_token_us, self.committed_tokens)
        self.slo = new.slo
        self.downgraded = self.downgrade_recorded = False
        self.submitted = False
        self.attempts = 0
        self.client: Attached | None = None
        self.delivered = False
        """A client has read it to its end."""
        self.detached_until_us: int | None = None
        self.finished: inference_service_pb2.Finished | None = None
        self.finished_at_us = 0
        self.released = False
        # The record: whether it exists, how many tokens its journal has, whether its end is written.
        self.recorded = False
        self.begun_again = False
        """From what its client held alone: an older record may turn up."""
        self.keyed = True
        self.journaled = 0
        self.closed = False
        self.not_durable_told = False
        if text is not None:
            text.push(unpack(bytes(self.packed)))

    @property
    def request_id(self) -> str:
        return self.new.request_id

    @property
    def committed_tokens(self) -> int:
        return len(self.packed) // TOKEN_BYTES

    @property
    def unwritten_bytes(self) -> int:
        """What the next write of its record carries, about."""
        prompt = 0 if self.recorded else len(self.new.prompt)
        return prompt + len(self.packed) - self.journaled * TOKEN_BYTES + 1_000

    @property
    def available(self) -> int:
        """Output tokens that clients may have: up to the one that completed a stop string."""
        return self.text.tokens if self.text is not None else self.committed_tokens

    @property
    def stopped(self) -> str | None:
        return self.text.stopped if self.text is not None else None

    @property
    def ends(self) -> sampling_pb2.FinishReason.ValueType | None:
        """How its text ends it, whatever the worker still generates."""
        if self.text is None or not self.text.over:
            return None
        return sampling_pb2.FINISH_REASON_ERROR if self.text.failure else sampling_pb2.FINISH_REASON_STOP_STRING

    @property
    def _tail(self) -> str:
        return self.text.tail if self.text is not None and self.origin.return_text else ""

    @property
    def state(self) -> str:
        if self.finished is not None:
            return "finished"
        if self.client is None:
            return "detached"
        return "running" if self.packed else "queued"

    def attach(self, next_index: int) -> Attached:
        """Makes a client's stream the request's only one."""
        if self.client is not None:
            self.client.superseded = True
            self.client.changed.set()
        text_between = self.text.between if self.text is not None and self.origin.return_text else None
        self.client = Attached(ClientStream(next_index, self.slo.tpot_us, text_between))
        self.detached_until_us = None
        return self.client

    def commit(self, packed: bytes, logprobs: Logprobs, now_us: int) -> None:
        before = self.available
        self.packed += packed
        if self.logprobs is not None:
            self.logprobs += logprobs or [UNKNOWN] * count(packed)
        if self.text is not None:
            self.text.push(unpack(packed))
        if self.available > before:
            self.measured.queued(self.available - before, now_us)
        self.wake()

    def notice(self, notice: inference_service_pb2.Notice) -> None:
        if notice.kind == inference_service_pb2.Notice.KIND_DOWNGRADED:
            self.downgraded = True
            self.slo = notice.slo
        if self.client is not None:
            self.client.stream.notice(notice)
        self.wake()

    def end(self, ended: Ended, now_us: int) -> None:
        """The one terminal: with the measured times and the verdict over what was promised at first."""
        if self.text is not None:
            self.text.finish()
        self.attempts = ended.attempts
        reason, stop, message = self.ends or ended.reason, "", ended.message
        if self.stopped is not None:
            stop = self.stopped
        elif self.text is not None and self.text.failure:
            message = (
                f"the model's tokenizer cannot decode the output after {self.available} tokens: {self.text.failure}"
            )
        elif ended.stop_token_id is not None:
            stop = str(ended.stop_token_id)
        outcome = self.measured.outcome(reason, self.available, self.downgraded, now_us)
        self.finished = inference_service_pb2.Finished(
            reason=reason,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.available,
            verdict=verdict(outcome, self.new.slo),
            ttft_us=self.measured.ttft_us,
            tpot_us=outcome.tpot_us,
            max_gap_us=self.measured.max_gap_us,
            total_us=outcome.ended_us,
            message=message,
            stop=stop,
            attempts=ended.attempts,
            text=self._tail,
            retry_after_us=ended.retry_after_us,
            predicted_ttft_us=ended.predicted_ttft_us,
        )
        self.finished_at_us = now_us
        self.wake()

    def restore(self, finished: inference_service_pb2.Finished) -> None:
        """The request had ended when it was taken over."""
        if self.text is not None:
            self.text.finish()
        self.finished = finished
        self.finished.text = self._tail
        self.submitted = self.closed = True

    def close(self) -> None:
        """The record is closed; the prompt is not kept any longer than there."""
        self.closed = True
        self.new = dataclasses.replace(self.new, prompt=b"")

    def wake(self) -> None:
        if self.client is not None:
            self.client.changed.set()

    def accepted(self, next_index: int, router_id: str) -> inference_service_pb2.Accepted:
        return inference_service_pb2.Accepted(
            request_id=self.request_id,
            slo=self.slo,
            prompt_tokens=self.prompt_tokens,
            max_tokens=self.new.max_tokens,
            seed=self.new.sampling.seed,
            durable=self.recorded,
            next_index=next_index,
            router_id=router_id,
        )
