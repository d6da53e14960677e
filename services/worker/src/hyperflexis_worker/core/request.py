"""One request on this worker, from the first of Run and Start to Closed."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperflexis.common.v1 import slo_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.engine_event import EndedAttempt, NewTokens
from hyperflexis_worker.steps.sampled import TokenLogprobs

PREEMPTIONS_TOLD = 4
"""Of one attempt: where the pool is short there may be many, and the end tells how many."""


@dataclass(slots=True, eq=False)
class Request:
    """Holds one attempt; a higher one of the same request replaces the whole object."""

    request_id: str
    attempt: Attempt
    first_seen_us: int
    run: worker_session_pb2.Run | None = None
    run_arrival_us: int = 0
    """The request's arrival at the router, on this clock."""
    start: token_feed_pb2.Start | None = None
    phase: worker_session_pb2.RequestPhase.ValueType = worker_session_pb2.REQUEST_PHASE_AWAITING_START
    tokens: bytearray = field(default_factory=bytearray)
    """All output tokens from index 0, committed ones included, packed."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the last tokens, as far back as this worker made them; empty where nobody asked."""
    crc: int = 0
    add_number: int = 0
    """By which the engine answers that it has taken this in; 0 = it was not given it."""
    pulling: bool = False
    """A part of its prompt is being read from a peer: the engine gets it after that."""
    pulled_tokens: int = 0
    """That part, if it came."""
    pull_us: int = 0
    """How long it waited for that."""
    owner: int | None = None
    """The feed that gets the tokens; None = nobody at present."""
    orphaned_us: int = 0
    queued_us: int = 0
    started_us: int = 0
    first_token_us: int = 0
    preemptions: int = 0
    finished: token_feed_pb2.AttemptFinished | None = None
    finished_us: int = 0

    @property
    def count(self) -> int:
        return packing.count(self.tokens)

    @property
    def complete(self) -> bool:
        """Both halves are here."""
        return self.run is not None and self.start is not None

    @property
    def live(self) -> bool:
        """The engine has it."""
        return not self.pulling and self.phase in (
            worker_session_pb2.REQUEST_PHASE_WAITING,
            worker_session_pb2.REQUEST_PHASE_PREFILL,
            worker_session_pb2.REQUEST_PHASE_DECODE,
        )

    @property
    def prompt_tokens(self) -> int:
        if self.start is not None:
            return packing.count(self.start.prompt)
        return self.run.prompt_tokens if self.run is not None else 0

    @property
    def router_id(self) -> str:
        return self.run.router_id if self.run is not None else ""

    @property
    def grace_us(self) -> int:
        return self.start.detach_grace_us if self.start is not None else 0

    def begin(self, start: token_feed_pb2.Start) -> None:
        """What its router says; it goes on after the committed tokens."""
        self.start = start
        self.tokens = bytearray(start.committed)
        self.crc = packing.extend_crc(0, start.committed)

    def take_over(self, start: token_feed_pb2.Start, now_us: int) -> None:
        """It came with its cache, from where it had made the committed tokens."""
        self.begin(start)
        self.phase = worker_session_pb2.REQUEST_PHASE_DECODE
        self.queued_us = self.started_us = self.first_token_us = now_us

    def take(self, new: NewTokens) -> None:
        """Appends new tokens. Raises AssertionError where they do not continue what is here: the engine is broken."""
        if new.start_index != self.count:
            raise AssertionError(f"the engine sent index {new.start_index} where {self.count} was due")
        self.tokens += new.packed
        self.logprobs += new.logprobs
        self.crc = packing.extend_crc(self.crc, new.packed)

    def logprobs_from(self, start_index: int) -> list[TokenLogprobs | None]:
        """Of tokens [start_index, count): None for those that an earlier attempt made. Empty where nobody asked."""
        if self.start is None or not self.start.sampling.HasField("logprobs"):
            return []
        first = self.count - len(self.logprobs)
        unknown: list[TokenLogprobs | None] = [None] * max(first - start_index, 0)
        return unknown + self.logprobs[max(start_index - first, 0) :]

    def finish(self, ended: EndedAttempt, now_us: int) -> None:
        """Nothing follows the tokens that are here."""
        self.phase = worker_session_pb2.REQUEST_PHASE_FINISHED
        self.finished_us = now_us
        self.finished = token_feed_pb2.AttemptFinished(
            reason=ended.reason,
            output_tokens=self.count,
            crc=self.crc,
            stop_token_id=ended.stop_token_id,
            message=ended.message,
            cached_tokens=ended.cached_tokens,
            queued_us=max(self.started_us - self.queued_us, 0),
            prefill_us=max(self.first_token_us - self.started_us, 0),
        )

    def preempted(self, tokens: int) -> slo_pb2.Decision | None:
        """Its blocks went to others, and so many tokens are to be computed again. What to tell of it, if anything."""
        self.preemptions += 1
        if self.preemptions > PREEMPTIONS_TOLD:
            return None
        return slo_pb2.Decision(kind="preempt", reason="kv_blocks", numbers={"recompute_tokens": tokens})

    def end_told(self, cached_tokens: int) -> slo_pb2.Decision:
        """What explains its times: `cached_tokens` of the prompt were there when it began."""
        numbers = {
            "preemptions": self.preemptions,
            "cached_tokens": cached_tokens,
            "pulled_tokens": self.pulled_tokens,
            "pull_us": self.pull_us,
        }
        return slo_pb2.Decision(kind="finish", numbers={name: number for name, number in numbers.items() if number})

    def crc_at(self, count: int) -> int:
        return self.crc if count == self.count else packing.extend_crc(0, bytes(self.tokens[: 4 * count]))

    def status(self) -> worker_session_pb2.RequestStatus:
        return worker_session_pb2.RequestStatus(
            request_id=self.request_id,
            attempt=self.attempt.proto(),
            phase=self.phase,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.count,
            router_id=self.router_id,
        )
