"""What a router tells about models, requests and itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperflexis.common.v1 import info_service_pb2, slo_pb2
from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis_client._events import Finished, Slo


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    context_length: int
    vocab_size: int
    ready_workers: int
    has_tokenizer: bool
    """False = prompts must be token ids."""
    has_chat_template: bool = False
    """True = prompts may be chat messages."""


@dataclass(frozen=True, slots=True)
class Models:
    """What can be asked for: the models, the tiers and the tier of requests that name none."""

    models: tuple[Model, ...]
    tiers: tuple[Slo, ...]
    default_tier: str

    @classmethod
    def of(cls, message: wire.ListModelsResponse) -> Models:
        models = tuple(
            Model(m.name, m.context_length, m.vocab_size, m.ready_workers, m.has_tokenizer, m.has_chat_template)
            for m in message.models
        )
        return cls(models, tuple(Slo.of(tier) for tier in message.tiers), message.default_tier)

    def model(self, name: str) -> Model | None:
        return next((model for model in self.models if model.name == name), None)


@dataclass(frozen=True, slots=True)
class RequestSummary:
    request_id: str
    model: str
    tier: str
    state: str
    """queued, running, detached or finished."""
    prompt_tokens: int
    output_tokens: int
    age_us: int
    router_id: str
    worker_id: str
    attempt: str
    """The current placement as `epoch.seq`; empty before the first."""

    @classmethod
    def of(cls, message: wire.RequestSummary) -> RequestSummary:
        attempt = message.attempt
        return cls(
            request_id=message.request_id,
            model=message.model,
            tier=message.tier,
            state=wire.RequestState.Name(message.state).removeprefix("REQUEST_STATE_").lower(),
            prompt_tokens=message.prompt_tokens,
            output_tokens=message.output_tokens,
            age_us=message.age_us,
            router_id=message.router_id,
            worker_id=message.worker_id,
            attempt=f"{attempt.leader_epoch}.{attempt.seq}" if attempt.seq else "",
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """Why something was decided, with the numbers that decided it; units are in their names."""

    kind: str
    reason: str
    numbers: Mapping[str, float]
    worker_id: str
    age_us: int
    attempt: str
    after_us: int | None = None
    """Since the request was received; None = not known."""

    @classmethod
    def of(cls, message: slo_pb2.Decision) -> Decision:
        return cls(
            kind=message.kind,
            reason=message.reason,
            numbers=dict(message.numbers),
            worker_id=message.worker_id,
            age_us=message.age_us,
            attempt=f"{message.leader_epoch}.{message.attempt_seq}" if message.attempt_seq else "",
            after_us=message.after_us if message.HasField("after_us") else None,
        )


@dataclass(frozen=True, slots=True)
class Pause:
    """Between two tokens. Microseconds; `began_us` since the request was received."""

    began_us: int
    length_us: int
    next_index: int
    """Of the token that ended it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The stream as the router measured it; microseconds since the request was received, 0 = no token yet."""

    first_token_us: int
    last_token_us: int
    pauses: tuple[Pause, ...]
    """The longest ones, in order of time."""

    @classmethod
    def of(cls, message: wire.Measured) -> Measured:
        pauses = tuple(Pause(pause.began_us, pause.length_us, pause.next_index) for pause in message.pauses)
        return cls(message.first_token_us, message.last_token_us, pauses)


@dataclass(frozen=True, slots=True)
class RequestDetails:
    summary: RequestSummary
    slo: Slo
    """Under which promise it runs now."""
    decisions: tuple[Decision, ...]
    finished: Finished | None
    promised: Slo | None = None
    """What was promised at first, and what the verdict is over; None where the router is too old to tell."""
    measured: Measured | None = None

    @classmethod
    def of(cls, message: wire.GetRequestResponse) -> RequestDetails:
        return cls(
            summary=RequestSummary.of(message.summary),
            slo=Slo.of(message.slo),
            decisions=tuple(Decision.of(decision) for decision in message.decisions),
            finished=Finished.of(message.finished) if message.HasField("finished") else None,
            promised=Slo.of(message.promised) if message.HasField("promised") else None,
            measured=Measured.of(message.measured) if message.HasField("measured") else None,
        )


@dataclass(frozen=True, slots=True)
class ServerInfo:
    service: str
    version: str
    protocol_version: int
    features: tuple[str, ...]
    instance_id: str
    uptime_us: int

    @classmethod
    def of(cls, message: info_service_pb2.GetServerInfoResponse) -> ServerInfo:
        return cls(
            message.service,
            message.version,
            message.protocol_version,
            tuple(message.features),
            message.instance_id,
            message.uptime_us,
        )
