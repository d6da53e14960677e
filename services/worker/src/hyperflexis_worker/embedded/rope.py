"""Rotary position embedding: what config.json says of it, and the frequencies that follow.

Kinds: default; linear (position interpolation, arXiv 2306.15595); llama3 (Llama 3.1's blend by wavelength); yarn
(arXiv 2309.00071: interpolation by wavelength, and attention scaled by its temperature).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hyperflexis_worker.embedded.config_fields import UnsupportedModel, flag, integer, number

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class Rope:
    """The fields after `kind` matter only to the kinds that scale."""

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    whole_dimensions: bool = True
    """yarn: the borders of its blend are rounded outwards to whole dimensions."""
    attention_factor: float = 1.0
    """yarn: cosine and sine are multiplied by it, and so the scores by its square."""

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], context: int) -> Rope:
        """Of a config.json; `context`: its max_position_embeddings. Raises UnsupportedModel."""
        # transformers 5 writes rope_parameters with the theta inside, 4 wrote rope_theta and rope_scaling.
        field = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
        scaling = config.get(field) or {}
        if not isinstance(scaling, Mapping):
            raise UnsupportedModel(f"{field} must be an object, got {scaling!r}")
        if nested := [name for name, value in scaling.items() if isinstance(value, Mapping)]:
            raise UnsupportedModel(f"{field} by kind of layer ({', '.join(map(str, nested))}) is not supported")
        theta = number(scaling if "rope_theta" in scaling else config, "rope_theta", 10_000.0)
        if number(scaling, "partial_rotary_factor", number(config, "partial_rotary_factor", 1.0)) != 1.0:
            raise UnsupportedModel("partial_rotary_factor other than 1.0 is not supported")
        kind: Any = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind not in KINDS:
            raise UnsupportedModel(f"{field}.rope_type {kind!r} is not supported; supported: {', '.join(KINDS)}")
        if kind == "default":
            return cls(theta)
        if kind == "linear":
            return cls(theta, kind, factor=number(scaling, "factor"))
        original = integer(scaling, "original_max_position_embeddings", context)
        if kind == "llama3":
            return cls(
                theta,
                kind,
                factor=number(scaling, "factor"),
                original_context=original,
                low_freq_factor=number(scaling, "low_freq_factor"),
                high_freq_factor=number(scaling, "high_freq_factor"),
            )
        factor = number(scaling, "factor", context / original)
        return cls(
            theta,
            kind,
            factor=factor,
            original_context=original,
            beta_fast=number(scaling, "beta_fast", 32.0),
            beta_slow=number(scaling, "beta_slow", 1.0),
            whole_dimensions=scaling.get("truncate") is None or flag(scaling, "truncate"),
            attention_factor=_attention_factor(scaling, factor),
        )

    def frequencies(self, head_dim: int) -> Tensor:
        """Radians a position, [head_dim / 2], float32."""
        powers = self.theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
        frequencies = 1.0 / powers
        match self.kind:
            case "linear":
                return frequencies / self.factor
            case "llama3":
                # Fast pairs stay, slow ones are slowed down by the factor, in between it is blended.
                turns = self.original_context * frequencies / (2 * math.pi)
                blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
                blend = blend.clamp(0, 1)
                return frequencies * blend + frequencies / self.factor * (1 - blend)
            case "yarn":
                slowed = self._yarn_ramp(head_dim)
                return 1.0 / (self.factor * powers) * slowed + frequencies * (1 - slowed)
            case _:
                return frequencies

    def _yarn_ramp(self, head_dim: int) -> Tensor:
        """How far each pair is slowed down, 0 to 1: not those that turn beta_fast times within the context."""

        def pair(turns: float) -> float:
            # The dimension whose pair turns so often within the original context.
            return head_dim * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.whole_dimensions:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        if low == high:
            high += 0.001
        return ((torch.arange(head_dim // 2).float() - low) / (high - low)).clamp(0, 1)


def _attention_factor(scaling: Mapping[str, Any], factor: float) -> float:
    """Given, or by the paper's temperature (YaRN, section 3.4); the two `mscale` fields are DeepSeek's variant."""
    if scaling.get("attention_factor") is not None:
        return number(scaling, "attention_factor")

    def temperature(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return temperature(number(scaling, "mscale")) / temperature(number(scaling, "mscale_all_dim"))
    return temperature(1.0)
