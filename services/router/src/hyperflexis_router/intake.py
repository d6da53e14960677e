"""A GenerateRequest on its way in: checked, tokenized, recorded."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis_common.clock import Clock
from hyperflexis_common.redis_access import RedisAway
from hyperflexis_router.chat import Message, TemplateRefused
from hyperflexis_router.core.catalog import Catalog, RequestLimits
from hyperflexis_router.core.submission import NewRequest
from hyperflexis_router.core.text import OutputText
from hyperflexis_router.core.validation import InvalidRequest, Violation, body_digest, check_prompt, check_request
from hyperflexis_router.faults import Faults
from hyperflexis_router.live import LiveRequest
from hyperflexis_router.rejection import Rejected, retry_after
from hyperflexis_router.store import Held, Origin, RequestStore
from hyperflexis_router.tokenizing import Tokenizing, Unencodable

RETRY_REDIS_US = 500_000


@dataclass(frozen=True, slots=True)
class Intake:
    catalog: Catalog
    limits: RequestLimits
    tokenizing: Tokenizing
    store: RequestStore
    clock: Clock
    faults: Faults
    features: Callable[[str], frozenset[str] | None]
    """Sampling features of a model's workers, as far as they are known."""

    async def check(self, request: inference_service_pb2.GenerateRequest, tenant: str, received_us: int) -> LiveRequest:
        """A request as this router would serve it; nothing is recorded. Raises Rejected."""
        field = "chat" if request.HasField("chat") else "text" if request.HasField("text") else "token_ids"
        try:
            checked = check_request(request, self.catalog, self.limits, self.features(request.model))
            if request.HasField("text"):
                prompt = await self.tokenizing.encode(request.model, request.text)
            elif request.HasField("chat"):
                messages = [Message(message.role, message.content) for message in request.chat.messages]
                prompt = await self.tokenizing.encode_chat(request.model, messages)
            else:
                prompt = request.token_ids.packed
            max_tokens = check_prompt(checked, prompt, field, self.limits)
        except InvalidRequest as error:
            raise Rejected.invalid(error) from error
        except Unencodable as error:
            violation = Violation(field, f"the model's tokenizer has no tokens for it: {error}")
            raise Rejected.invalid(InvalidRequest("INVALID_ARGUMENT", [violation])) from error
        except TemplateRefused as error:
            violation = Violation("chat.messages", f"the model's chat template refuses them: {error}")
            raise Rejected.invalid(InvalidRequest("INVALID_ARGUMENT", [violation])) from error
        sampling = sampling_pb2.SamplingParams()
        sampling.CopyFrom(checked.sampling)
        sampling.max_tokens = max_tokens
        if not sampling.HasField("seed"):
            sampling.seed = secrets.randbits(64)
        new = NewRequest(
            request_id=secrets.token_hex(16),
            model=request.model,
            tenant=tenant,
            prompt=prompt,
            sampling=sampling,
            max_tokens=max_tokens,
            slo=checked.slo,
            received_us=received_us,
            detach_grace_us=checked.detach_grace_us,
            owner_gen=new_owner_gen(),
        )
        self.faults.passed("validated")
        origin = Origin(checked.return_text, request.idempotency_key, body_digest(request))
        return LiveRequest(new, origin, self.text(new, checked.return_text))

    async def record(self, live: LiveRequest, durability: inference_service_pb2.Durability.ValueType) -> Held | None:
        """Writes the record; `live.recorded` says whether Redis has it. Raises Rejected where it must and has not."""
        age_us = self.clock.now_us() - live.new.received_us
        try:
            held = await self.store.record(live.new, live.origin, age_us)
        except RedisAway as error:
            if durability == inference_service_pb2.DURABILITY_STRICT:
                raise Rejected(
                    grpc.StatusCode.UNAVAILABLE,
                    "Redis does not answer, and durability STRICT needs it; try again or ask for BEST_EFFORT",
                    [retry_after(RETRY_REDIS_US)],
                ) from error
            return None
        live.recorded = held is None
        self.faults.passed("recorded")
        return held

    def text(self, new: NewRequest, return_text: bool) -> OutputText | None:
        """None where nobody needs the text: neither the client nor a stop string."""
        decode = self.tokenizing.decoder(new.model)
        if decode is None or not (return_text or new.sampling.stop):
            return None
        return OutputText(decode, new.sampling.stop)


def new_owner_gen() -> int:
    """Random, and within the signed range that every client of Redis can hold."""
    return secrets.randbits(63)
