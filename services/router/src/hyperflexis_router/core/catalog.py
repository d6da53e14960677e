"""What this router serves: models and tiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperflexis.common.v1 import slo_pb2
from hyperflexis_common.config import TierSettings
from hyperflexis_common.promise import slo_of


@dataclass(frozen=True, slots=True)
class ModelSpec:
    name: str
    context_length: int
    vocab_size: int
    has_tokenizer: bool = False
    has_chat_template: bool = False


@dataclass(frozen=True, slots=True)
class Catalog:
    models: Mapping[str, ModelSpec]
    tiers: Mapping[str, slo_pb2.Slo]
    default_tier: str


@dataclass(frozen=True, slots=True)
class RequestLimits:
    prompt_bytes: int = 4 * 2**20
    chat_messages: int = 4_096
    default_max_tokens: int = 1_024
    """Where a request states none, within what the context leaves."""
    stop_strings: int = 16
    stop_characters: int = 256
    stop_token_ids: int = 64
    logprobs: int = 20
    detach_grace_ms: int = 3_600_000
    idempotency_key_characters: int = 256
    slo_us: int = 86_400_000_000
    """A day: longer promises are none."""


BUILT_IN_TIERS = {
    name: slo_of(TierSettings(name=name, ttft_ms=ttft_ms, tpot_ms=tpot_ms))
    for name, ttft_ms, tpot_ms in [
        ("chat", 500, 50),
        ("code", 500, 30),
        ("math", 3_000, 50),
        ("summarise", 15_000, 150),
    ]
}
"""Served where the configuration names no tiers."""
