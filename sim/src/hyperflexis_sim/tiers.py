"""Promises of a simulated workload, and which share of the requests gets which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from hyperflexis_common.config import TierSettings
from hyperflexis_common.promise import check_downgrades, longest_gap_us, slo_of

ALL = "all"
"""What rows call all tiers together."""


class SimTier(TierSettings):
    """A tier as in the stack's YAML, and its share of the requests of a trace that names no tiers."""

    share: float = Field(default=1.0, gt=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Promise:
    """Microseconds."""

    tier: str
    ttft_us: float
    tpot_us: float
    max_gap_us: float
    weight: float = 1.0
    on_violation: str = "refuse"
    """refuse, best_effort or downgrade:<tier>."""
    share: float = 1.0
    guarantee: float = 0.0

    @classmethod
    def of(cls, tier: TierSettings, share: float = 1.0) -> Promise:
        """As the stack's configuration has it."""
        slo = slo_of(tier)
        times_us = slo.ttft_us, slo.tpot_us, slo.max_gap_us
        return cls(tier.name, *times_us, tier.weight, tier.on_violation, share, tier.guarantee)

    def described(self) -> str:
        """For people."""
        weight = f", weight {self.weight:g}" if self.weight != 1 else ""
        guarantee = f", guaranteed {self.guarantee:.0%}" if self.guarantee else ""
        times = f"first token {self.ttft_us / 1e3:g} ms, each further one {self.tpot_us / 1e3:g} ms"
        return f"{times}; else {self.on_violation}; share {self.share:g}{weight}{guarantee}"

    def scaled(self, factor: float) -> Promise:
        """All times so many times as long."""
        ttft_us, tpot_us = self.ttft_us * factor, self.tpot_us * factor
        return replace(self, ttft_us=ttft_us, tpot_us=tpot_us, max_gap_us=longest_gap_us(tpot_us))


def promise(tier: str, ttft_ms: float, tpot_ms: float, share: float = 1.0, weight: float = 1.0) -> Promise:
    return Promise(tier, ttft_ms * 1e3, tpot_ms * 1e3, longest_gap_us(tpot_ms * 1e3), weight, "refuse", share)


FOUR_TASKS = {
    "chat": promise("chat", 500, 50),
    "code": promise("code", 500, 30),
    "math": promise("math", 3_000, 50),
    "summarise": promise("summarise", 15_000, 150),
}
"""Each value from a cited setting of the literature; the mix is ours (docs/scheduling.md)."""

LONG_CONTEXT = {
    "interactive": promise("interactive", 5_000, 50, 0.5),
    "agent": promise("agent", 15_000, 100, 0.3),
    "batch": promise("batch", 60_000, 200, 0.2),
}
"""For traces with prompts of tens of thousands of tokens; ours."""


def read_tiers(path: Path) -> Mapping[str, Promise]:
    """`tiers:` of a YAML file, each as in the stack's configuration with a `share`. Raises ValueError."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = document["tiers"] if isinstance(document, dict) and "tiers" in document else document
        tiers = TypeAdapter(list[SimTier]).validate_python(entries)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}." for part in ("tiers", *first["loc"]))
        raise ValueError(f"{path}: {where.rstrip('.')}: {first['msg']}") from error
    names = [tier.name for tier in tiers]
    if not names:
        raise ValueError(f"{path} names no tiers")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path}: tier {twice!r} is there twice")
    if ALL in names:
        raise ValueError(f"{path}: no tier can be called {ALL!r}, which is what rows over all tiers are called")
    try:
        check_downgrades(tiers)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {tier.name: Promise.of(tier, tier.share) for tier in tiers}
