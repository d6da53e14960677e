"""What this router serves: models and tiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hyperflexis.common.v1 import slo_pb2


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


def tier_slo(
    name: str, ttft_ms: float, tpot_ms: float, max_gap_ms: float | None, weight: float, on_violation: str
) -> slo_pb2.Slo:
    """A tier of the configuration as a message; `on_violation` as TierSettings spells it."""
    kind, _, downgrade_tier = on_violation.partition(":")
    return slo_pb2.Slo(
        tier=name,
        ttft_us=round(ttft_ms * 1_000),
        tpot_us=round(tpot_ms * 1_000),
        max_gap_us=round((max(4 * tpot_ms, 250) if max_gap_ms is None else max_gap_ms) * 1_000),
        weight=weight,
        on_violation=slo_pb2.OnViolation.Value(f"ON_VIOLATION_{kind.upper()}"),
        downgrade_tier=downgrade_tier,
    )


BUILT_IN_TIERS = {
    name: tier_slo(name, ttft_ms, tpot_ms, None, 1.0, "best_effort")
    for name, ttft_ms, tpot_ms in [
        ("chat", 500, 50),
        ("code", 500, 30),
        ("math", 3_000, 50),
        ("summarise", 15_000, 150),
    ]
}
"""Served where the configuration names no tiers."""
