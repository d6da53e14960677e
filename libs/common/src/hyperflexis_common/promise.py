"""What a tier promises: as it travels with a request, what holds where nothing is said, and how a miss is worded."""

from __future__ import annotations

from collections.abc import Sequence

from hyperflexis.common.v1 import slo_pb2
from hyperflexis_common.config import TierSettings


def longest_gap_us(tpot_us: float) -> int:
    """The longest pause between two tokens, where the tier names none."""
    return round(max(4 * tpot_us, 250_000))


def slo_of(tier: TierSettings) -> slo_pb2.Slo:
    """A tier of the configuration."""
    kind, _, target = tier.on_violation.partition(":")
    tpot_us = round(tier.tpot_ms * 1_000)
    return slo_pb2.Slo(
        tier=tier.name,
        ttft_us=round(tier.ttft_ms * 1_000),
        tpot_us=tpot_us,
        max_gap_us=longest_gap_us(tpot_us) if tier.max_gap_ms is None else round(tier.max_gap_ms * 1_000),
        weight=tier.weight,
        on_violation=slo_pb2.OnViolation.Value(f"ON_VIOLATION_{kind.upper()}"),
        downgrade_tier=target,
    )


def check_downgrades(tiers: Sequence[TierSettings]) -> None:
    """Raises ValueError for one that falls to a tier that is not there."""
    names = [tier.name for tier in tiers]
    for tier in tiers:
        kind, _, target = tier.on_violation.partition(":")
        if kind == "downgrade" and target not in names:
            known = ", ".join(names)
            raise ValueError(f"tier {tier.name!r} falls to {target!r}, which is not a tier; tiers are {known}")


def too_late(predicted_ttft_us: float, slo: slo_pb2.Slo) -> str:
    """To end a sentence on a promise that is not kept; empty where nothing was predicted."""
    if not predicted_ttft_us:
        return ""
    return (
        f": its first token was predicted after {predicted_ttft_us / 1e3:,.0f} ms, "
        f"promised are {slo.ttft_us / 1e3:,.0f}"
    )
