"""What a generation stream yields: Accepted once, Delta and Notice in any number, Finished once."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis_client._tokens import unpack


class FinishReason(enum.StrEnum):
    UNSPECIFIED = "unspecified"
    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    CANCELLED = "cancelled"
    REFUSED = "refused"
    ERROR = "error"

    @classmethod
    def of(cls, value: int) -> FinishReason:
        return cls(_plain(sampling_pb2.FinishReason, value, "FINISH_REASON_", cls))

    @property
    def complete(self) -> bool:
        """The output is whole: it ended where it was meant to."""
        return self in (FinishReason.STOP_TOKEN, FinishReason.STOP_STRING, FinishReason.LENGTH)


class Verdict(enum.StrEnum):
    """Was the service-level objective kept?"""

    UNSPECIFIED = "unspecified"
    ATTAINED = "attained"
    MISSED = "missed"
    EXCLUDED = "excluded"

    @classmethod
    def of(cls, value: int) -> Verdict:
        return cls(_plain(slo_pb2.Verdict, value, "VERDICT_", cls))


class NoticeKind(enum.StrEnum):
    UNSPECIFIED = "unspecified"
    QUEUED = "queued"
    DOWNGRADED = "downgraded"
    BEST_EFFORT = "best_effort"
    REPLACED = "replaced"
    NOT_DURABLE = "not_durable"

    @classmethod
    def of(cls, value: int) -> NoticeKind:
        return cls(_plain(wire.Notice.Kind, value, "KIND_", cls))


def _plain(wire_enum: object, value: int, prefix: str, known: type[enum.StrEnum]) -> str:
    """The lower-case name of a wire value; a value of a newer server reads as unspecified."""
    names = {number: name for name, number in wire_enum.items()}  # type: ignore[attr-defined]
    name = str(names.get(value, "")).removeprefix(prefix).lower()
    return name if name in known.__members__.values() else "unspecified"


@dataclass(frozen=True, slots=True)
class Slo:
    """What was promised. Durations in microseconds."""

    tier: str
    ttft_us: int
    tpot_us: int
    max_gap_us: int
    weight: float

    @classmethod
    def of(cls, message: slo_pb2.Slo) -> Slo:
        return cls(message.tier, message.ttft_us, message.tpot_us, message.max_gap_us, message.weight)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    logprob: float
    top: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The request is known to a router under `request_id`."""

    request_id: str
    slo: Slo
    prompt_tokens: int
    max_tokens: int
    seed: int
    durable: bool
    next_index: int
    router_id: str

    @classmethod
    def of(cls, message: wire.Accepted) -> Accepted:
        return cls(
            request_id=message.request_id,
            slo=Slo.of(message.slo),
            prompt_tokens=message.prompt_tokens,
            max_tokens=message.max_tokens,
            seed=message.seed,
            durable=message.durable,
            next_index=message.next_index,
            router_id=message.router_id,
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """Output tokens [start_index, start_index + len(token_ids)), and the text they complete."""

    start_index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()

    @classmethod
    def of(cls, message: wire.Delta) -> Delta:
        logprobs = tuple(TokenLogprobs(entry.logprob, dict(entry.top)) for entry in message.logprobs)
        return cls(message.start_index, unpack(message.token_ids.packed), message.text, logprobs)


@dataclass(frozen=True, slots=True)
class Notice:
    """Something worth knowing that does not end the stream, such as a downgrade (`slo` = the new promise)."""

    kind: NoticeKind
    message: str
    slo: Slo | None
    predicted_ttft_us: int = 0
    """DOWNGRADED, BEST_EFFORT: the first token predicted under the promise given up; 0 = not known."""

    @classmethod
    def of(cls, message: wire.Notice) -> Notice:
        slo = Slo.of(message.slo) if message.HasField("slo") else None
        return cls(NoticeKind.of(message.kind), message.message, slo, message.predicted_ttft_us)


@dataclass(frozen=True, slots=True)
class Finished:
    """How it ended, as the router measured it. Durations in microseconds."""

    reason: FinishReason
    prompt_tokens: int
    output_tokens: int
    verdict: Verdict
    ttft_us: int
    tpot_us: int
    max_gap_us: int
    total_us: int
    message: str
    stop: str
    attempts: int
    retry_after_us: int = 0
    """Where it was refused: when trying again may help; 0 = not known."""
    predicted_ttft_us: int = 0

    @classmethod
    def of(cls, message: wire.Finished) -> Finished:
        return cls(
            reason=FinishReason.of(message.reason),
            prompt_tokens=message.prompt_tokens,
            output_tokens=message.output_tokens,
            verdict=Verdict.of(message.verdict),
            ttft_us=message.ttft_us,
            tpot_us=message.tpot_us,
            max_gap_us=message.max_gap_us,
            total_us=message.total_us,
            message=message.message,
            stop=message.stop,
            attempts=message.attempts,
            retry_after_us=message.retry_after_us,
            predicted_ttft_us=message.predicted_ttft_us,
        )


Event = Accepted | Delta | Notice | Finished


@dataclass(frozen=True, slots=True)
class Result:
    """A whole generation."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]
    finished: Finished
    notices: tuple[Notice, ...]
