"""GenerateRequest to NewRequest, or everything that is wrong with it, said so that the client can act."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis_common.sampling import features_asked
from hyperflexis_common.tokens import TOKEN_BYTES, count, unpack
from hyperflexis_router.core.catalog import Catalog, ModelSpec, RequestLimits

Status = Literal["INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"]


class Violation(NamedTuple):
    field: str
    """Path in the request, such as `sampling.top_p`."""
    message: str


class InvalidRequest(Exception):
    """The request cannot be served as it is. `status` is the gRPC status code's name."""

    def __init__(self, status: Status, violations: list[Violation]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in violations))
        self.status: Status = status
        self.violations = violations


@dataclass(frozen=True, slots=True)
class CheckedRequest:
    """Everything about a request but the length of its prompt, which only the tokenizer knows."""

    model: ModelSpec
    slo: slo_pb2.Slo
    sampling: sampling_pb2.SamplingParams
    return_text: bool
    detach_grace_us: int


def check_request(
    request: inference_service_pb2.GenerateRequest,
    catalog: Catalog,
    limits: RequestLimits,
    features: frozenset[str] | None = None,
) -> CheckedRequest:
    """Checks all that can be known before tokenization. Raises InvalidRequest.

    `features`: SamplingParams fields that the model's workers honour; None = no worker is known yet, its own will say.
    """
    model = catalog.models.get(request.model)
    if model is None:
        known = ", ".join(sorted(catalog.models)) or "none"
        raise InvalidRequest(
            "NOT_FOUND", [Violation("model", f"{_quoted(request.model)} is not served; models: {known}")]
        )
    tier = catalog.tiers.get(request.tier or catalog.default_tier)
    violations = [
        *_prompt_violations(request, model, limits),
        *_sampling_violations(request.sampling, model, limits),
        *_slo_violations(request, tier, catalog, limits),
    ]
    if not 0 <= request.detach_grace_ms <= limits.detach_grace_ms:
        violations.append(
            Violation("detach_grace_ms", f"must be 0 to {limits.detach_grace_ms}, not {request.detach_grace_ms}")
        )
    if len(request.idempotency_key) > limits.idempotency_key_characters:
        violations.append(
            Violation(
                "idempotency_key",
                f"at most {limits.idempotency_key_characters} characters, not {len(request.idempotency_key)}",
            )
        )
    wants_text = request.return_text if request.HasField("return_text") else model.has_tokenizer
    if wants_text and not model.has_tokenizer:
        violations.append(Violation("return_text", f"model {model.name} has no tokenizer: deltas carry token ids only"))
    if violations:
        raise InvalidRequest("INVALID_ARGUMENT", violations)
    if missing := list(_unimplemented(request.sampling, model, features)):
        raise InvalidRequest("UNIMPLEMENTED", missing)
    assert tier is not None
    return CheckedRequest(model, _slo(request, tier), request.sampling, wants_text, request.detach_grace_ms * 1_000)


def check_prompt(checked: CheckedRequest, prompt: bytes, field: str, limits: RequestLimits) -> int:
    """Checks the packed prompt token ids; returns max_tokens. Raises InvalidRequest."""
    model, sampling = checked.model, checked.sampling
    tokens = count(prompt)
    if tokens == 0:
        raise _invalid(field, "the prompt is empty; send at least one token")
    if tokens >= model.context_length:
        raise _invalid(
            field,
            f"{tokens} prompt tokens leave no room in the context of {model.context_length} tokens; shorten the prompt",
        )
    ids = unpack(prompt)
    if max(ids) >= model.vocab_size:
        index = next(index for index, token in enumerate(ids) if token >= model.vocab_size)
        raise _invalid(
            field, f"token {index} is {ids[index]}; ids must be below the vocabulary size {model.vocab_size}"
        )
    room = model.context_length - tokens
    if not sampling.HasField("max_tokens"):
        max_tokens = min(room, max(limits.default_max_tokens, sampling.min_tokens))
    else:
        max_tokens = sampling.max_tokens
        if max_tokens > room:
            raise _invalid(
                "sampling.max_tokens",
                f"{tokens} prompt tokens + max_tokens {max_tokens} exceed the context of {model.context_length}; "
                f"at most {room} are left for the output",
            )
    if sampling.min_tokens > max_tokens:
        raise _invalid("sampling.min_tokens", f"{sampling.min_tokens} is more than max_tokens {max_tokens}")
    return max_tokens


def body_digest(request: inference_service_pb2.GenerateRequest) -> str:
    """BLAKE2 of the request without its idempotency key: equal digests mean the same request."""
    body = inference_service_pb2.GenerateRequest()
    body.CopyFrom(request)
    body.ClearField("idempotency_key")
    return hashlib.blake2b(body.SerializeToString(deterministic=True), digest_size=16).hexdigest()


def _prompt_violations(
    request: inference_service_pb2.GenerateRequest, model: ModelSpec, limits: RequestLimits
) -> Iterator[Violation]:
    kind = request.WhichOneof("prompt")
    if kind is None:
        yield Violation("prompt", "is missing; send text or token_ids")
    elif kind == "token_ids":
        size = len(request.token_ids.packed)
        if size == 0:
            yield Violation("token_ids", "the prompt is empty; send at least one token")
        elif size % TOKEN_BYTES:
            yield Violation("token_ids", f"must be packed 32-bit ids, a multiple of 4 bytes, not {size}")
        elif size > limits.prompt_bytes:
            yield Violation("token_ids", f"{size} bytes are over the limit of {limits.prompt_bytes}")
    elif kind == "chat":
        yield from _chat_violations(request.chat, model, limits)
    elif not model.has_tokenizer:
        yield Violation("text", f"model {model.name} has no tokenizer; send token_ids")
    elif not request.text:
        yield Violation("text", "the prompt is empty")
    elif (size := len(request.text.encode())) > limits.prompt_bytes:
        yield Violation("text", f"{size} bytes are over the limit of {limits.prompt_bytes}")


def _chat_violations(chat: inference_service_pb2.Chat, model: ModelSpec, limits: RequestLimits) -> Iterator[Violation]:
    if not model.has_chat_template:
        yield Violation("chat", f"model {model.name} has no chat template; send text or token_ids")
    elif not chat.messages:
        yield Violation("chat.messages", "is empty; send at least one message")
    elif len(chat.messages) > limits.chat_messages:
        yield Violation("chat.messages", f"at most {limits.chat_messages}, not {len(chat.messages)}")
    elif (size := sum(len(message.content.encode()) for message in chat.messages)) > limits.prompt_bytes:
        yield Violation("chat.messages", f"{size} bytes are over the limit of {limits.prompt_bytes}")
    elif nameless := [index for index, message in enumerate(chat.messages) if not message.role]:
        yield Violation(f"chat.messages[{nameless[0]}].role", "is empty; say system, user or assistant")


def _sampling_violations(
    sampling: sampling_pb2.SamplingParams, model: ModelSpec, limits: RequestLimits
) -> Iterator[Violation]:
    ranges: list[tuple[str, float, float, float]] = [
        ("temperature", sampling.temperature, 0.0, 100.0),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("presence_penalty", sampling.presence_penalty, -2.0, 2.0),
        ("frequency_penalty", sampling.frequency_penalty, -2.0, 2.0),
        ("logprobs", sampling.logprobs, 0, limits.logprobs),
    ]
    for name, value, low, high in ranges:
        if not low <= value <= high:
            yield Violation(f"sampling.{name}", f"must be {low:g} to {high:g}, not {value:g}")
    if sampling.HasField("top_p") and not 0.0 < sampling.top_p <= 1.0:
        yield Violation("sampling.top_p", f"must be above 0 and at most 1, not {sampling.top_p:g}")
    if sampling.HasField("repetition_penalty") and not 0.0 < sampling.repetition_penalty <= 100.0:
        yield Violation(
            "sampling.repetition_penalty", f"must be above 0 and at most 100, not {sampling.repetition_penalty:g}"
        )
    if sampling.HasField("max_tokens") and sampling.max_tokens == 0:
        yield Violation("sampling.max_tokens", "must be at least 1; leave it out for the default")
    for token, bias in sampling.logit_bias.items():
        if token >= model.vocab_size or not math.isfinite(bias):
            yield Violation(
                "sampling.logit_bias", f"token {token}: {bias:g}; ids are below {model.vocab_size}, biases finite"
            )
            break
    if len(sampling.stop_token_ids) > limits.stop_token_ids:
        yield Violation(
            "sampling.stop_token_ids", f"at most {limits.stop_token_ids}, not {len(sampling.stop_token_ids)}"
        )
    for index, token in enumerate(sampling.stop_token_ids):
        if token >= model.vocab_size:
            yield Violation(
                "sampling.stop_token_ids", f"entry {index} is {token}; ids must be below {model.vocab_size}"
            )
            break
    if len(sampling.stop) > limits.stop_strings:
        yield Violation("sampling.stop", f"at most {limits.stop_strings} stop strings, not {len(sampling.stop)}")
    for index, stop in enumerate(sampling.stop):
        if not 1 <= len(stop) <= limits.stop_characters:
            yield Violation("sampling.stop", f"entry {index} has {len(stop)} characters; 1 to {limits.stop_characters}")
            break
    if sampling.stop and not model.has_tokenizer:
        yield Violation("sampling.stop", f"model {model.name} has no tokenizer; use stop_token_ids")


def _slo_violations(
    request: inference_service_pb2.GenerateRequest, tier: slo_pb2.Slo | None, catalog: Catalog, limits: RequestLimits
) -> Iterator[Violation]:
    if tier is None:
        yield Violation("tier", f"{_quoted(request.tier)} is unknown; tiers: {', '.join(catalog.tiers)}")
        return
    for name, value, promised in [
        ("ttft_us", request.ttft_us, tier.ttft_us),
        ("tpot_us", request.tpot_us, tier.tpot_us),
    ]:
        if value < 0 or value > limits.slo_us:
            yield Violation(name, f"must be 0 to {limits.slo_us}, not {value}")
        elif 0 < value < promised:
            yield Violation(name, f"{value} is tighter than the {promised} of tier {tier.tier}; choose a tighter tier")


def _unimplemented(
    sampling: sampling_pb2.SamplingParams, model: ModelSpec, features: frozenset[str] | None
) -> Iterator[Violation]:
    if sampling.n > 1:
        yield Violation("sampling.n", "one continuation a request; send the request several times")
    for name in features_asked(sampling):
        if features is not None and name not in features:
            yield Violation(f"sampling.{name}", f"the engine of model {model.name} does not honour it; leave it out")


def _slo(request: inference_service_pb2.GenerateRequest, tier: slo_pb2.Slo) -> slo_pb2.Slo:
    slo = slo_pb2.Slo()
    slo.CopyFrom(tier)
    slo.ttft_us = request.ttft_us or tier.ttft_us
    slo.tpot_us = request.tpot_us or tier.tpot_us
    # A looser pace than the tier's allows longer pauses than the tier's.
    slo.max_gap_us = max(tier.max_gap_us, 4 * slo.tpot_us if request.tpot_us else 0)
    return slo


def _invalid(field: str, message: str) -> InvalidRequest:
    return InvalidRequest("INVALID_ARGUMENT", [Violation(field, message)])


def _quoted(name: str) -> str:
    return repr(name[:64] + ("…" if len(name) > 64 else ""))
