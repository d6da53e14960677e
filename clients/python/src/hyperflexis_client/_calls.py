"""What both clients share: their options and the requests they send."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import grpc

from hyperflexis.common.v1 import info_service_pb2_grpc
from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis.router.v1 import inference_service_pb2_grpc
from hyperflexis_client._recovery import RetryPolicy
from hyperflexis_client._sampling import Sampling
from hyperflexis_client._tokens import pack

DETACH_GRACE_MS = 10_000
"""A request goes on this long after its stream is lost, so that a reconnection finds it running."""

UNARY_TIMEOUT_S = 5.0

MAX_MESSAGE_BYTES = 16 * 2**20

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]
"""The settings every HyperFlexis process uses: with gRPC's defaults a client notices seconds late that a
router is gone or back."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a client reaches its routers."""

    targets: tuple[str, ...]
    api_key: str | None = field(repr=False)
    credentials: grpc.ChannelCredentials | None
    retry: RetryPolicy

    @classmethod
    def of(
        cls,
        targets: str | Sequence[str],
        api_key: str | None,
        credentials: grpc.ChannelCredentials | None,
        retry: RetryPolicy | None,
    ) -> Options:
        """Raises ValueError without a usable target."""
        listed = (targets,) if isinstance(targets, str) else tuple(targets)
        if not listed or not all(target.strip() for target in listed):
            raise ValueError("targets must name at least one router as host:port")
        return cls(listed, api_key, credentials, retry or RetryPolicy())

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()


Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text, token ids, or chat messages `{"role": ..., "content": ...}`."""


def generate_request(
    model: str,
    prompt: Prompt,
    *,
    sampling: Sampling | None,
    tier: str,
    ttft_ms: float | None,
    tpot_ms: float | None,
    detach_grace_ms: int,
    idempotency_key: str | None,
    durable: bool,
    return_text: bool | None,
) -> wire.GenerateRequest:
    """The wire request. Raises ValueError for token ids out of range, KeyError for a message without its role."""
    request = wire.GenerateRequest(
        model=model,
        sampling=(sampling or Sampling()).proto(),
        tier=tier,
        ttft_us=round(ttft_ms * 1_000) if ttft_ms is not None else 0,
        tpot_us=round(tpot_ms * 1_000) if tpot_ms is not None else 0,
        detach_grace_ms=detach_grace_ms,
        # Without a key a repetition after a lost answer would run twice.
        idempotency_key=idempotency_key if idempotency_key is not None else secrets.token_hex(16),
        durability=wire.DURABILITY_STRICT if durable else wire.DURABILITY_BEST_EFFORT,
        return_text=return_text,
    )
    if isinstance(prompt, str):
        request.text = prompt
    elif prompt and isinstance(prompt[0], Mapping):
        request.chat.SetInParent()
        for message in prompt:
            assert isinstance(message, Mapping), "a chat is messages only"
            request.chat.messages.add(role=message["role"], content=message["content"])
    else:
        request.token_ids.packed = pack(cast("Sequence[int]", prompt))
    return request


def stub_of(channel: Any, method: str) -> Any:
    """The stub that has `method`, on a sync or asyncio channel."""
    if method == "GetServerInfo":
        return info_service_pb2_grpc.InfoServiceStub(channel)
    return inference_service_pb2_grpc.InferenceServiceStub(channel)
