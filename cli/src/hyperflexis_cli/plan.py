"""From a trace to the requests that a replay sends. Pure: the caller brings the random generator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from hyperflexis_cli.trace import TraceRow


@dataclass(frozen=True, slots=True)
class Planned:
    """One request to send."""

    index: int
    at_s: float
    """Seconds after the start of the replay."""
    prompt_tokens: int
    output_tokens: int
    tier: str
    """Empty = the router's default."""
    clipped: bool = False
    """Its lengths did not fit the model's context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a trace is changed on its way to the router."""

    context_length: int
    speed: float = 1.0
    """Arrivals come this many times faster."""
    scale_lengths: float = 1.0
    """Prompt and output lengths are multiplied by this."""
    keep: float = 1.0
    """Share of the requests that is kept, drawn at random."""
    duration_s: float | None = None
    """Only what arrives within this time of the replay."""
    tier_mix: Mapping[str, float] = field(default_factory=dict)
    """Tiers are drawn by these weights; empty = what the trace says."""


def plan(rows: Sequence[TraceRow], shape: Shape, random: Random) -> list[Planned]:
    """The requests in order of arrival."""
    tiers, weights = list(shape.tier_mix), list(shape.tier_mix.values())
    planned: list[Planned] = []
    for row in rows:
        at_s = row.arrival_s / shape.speed
        if shape.duration_s is not None and at_s >= shape.duration_s:
            break
        if shape.keep < 1.0 and random.random() >= shape.keep:
            continue
        tier = random.choices(tiers, weights)[0] if tiers else row.tier
        wanted = [max(1, round(count * shape.scale_lengths)) for count in (row.prompt_tokens, row.output_tokens)]
        prompt, output = fit(wanted[0], wanted[1], shape.context_length)
        planned.append(Planned(len(planned), at_s, prompt, output, tier, [prompt, output] != wanted))
    return planned


def fit(prompt: int, output: int, context_length: int) -> tuple[int, int]:
    """Lengths that fit the context together: the prompt gives way, down to half of the context."""
    output = min(output, max(context_length - prompt, context_length // 2))
    return min(prompt, context_length - output), output


def parse_tier_mix(text: str) -> dict[str, float]:
    """`chat=0.5,code=0.5` to weights. Raises ValueError."""
    mix: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, separator, weight = part.partition("=")
        try:
            value = float(weight)
        except ValueError:
            value = math.nan
        if not separator or not name.strip() or not math.isfinite(value) or value < 0:
            raise ValueError(f"tier mix must read like chat=0.5,code=0.5; {part!r} does not")
        if name.strip() in mix:
            raise ValueError(f"tier mix names {name.strip()!r} twice")
        mix[name.strip()] = value
    if not mix or sum(mix.values()) <= 0:
        raise ValueError("tier mix must give at least one tier a weight above 0, like chat=0.5,code=0.5")
    return mix
