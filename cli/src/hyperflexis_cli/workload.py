"""The demonstration's workload: a mix or a trace, fitted to a model and to what this machine can do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from hyperflexis_cli.calibration import Capacity
from hyperflexis_cli.mix import TRAFFIC, draw_mix
from hyperflexis_cli.plan import Shape
from hyperflexis_cli.summary import percentile
from hyperflexis_cli.trace import TraceRow, read_trace

LOAD = 0.4
"""Offered tokens a second, as a share of the capacity measured."""
OVERLOAD = 1.5
"""The same where policies are compared: below the capacity all of them keep every promise."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Rows to replay and what they are."""

    rows: Sequence[TraceRow]
    tier_mix: Mapping[str, float]
    sources: str

    def lengths(self, context_length: int) -> float:
        """The factor on lengths with which 99 % of the requests fit the context; never above 1."""
        whole = percentile([row.prompt_tokens + row.output_tokens for row in self.rows], 0.99)
        assert whole is not None
        return min(1.0, round(context_length / whole, 3)) if whole > context_length else 1.0

    @property
    def requests_per_s(self) -> float:
        """As the rows arrive."""
        span_s = self.rows[-1].arrival_s
        return (len(self.rows) - 1) / span_s if span_s > 0 else math.inf

    def shape(self, context_length: int) -> Shape:
        """Lengths and tiers fitted; arrivals as they are."""
        factor = self.lengths(context_length)
        return Shape(context_length=context_length, scale_lengths=factor, tier_mix=self.tier_mix)


def built_in_workload(seed: int, count: int = 20_000) -> Workload:
    """The three-tier mix, at one request a second."""
    sources = "; ".join(f"{kind.tier} {kind.share:.0%}: {kind.source}" for kind in TRAFFIC)
    return Workload(draw_mix(count, Random(seed)), {}, f"built-in mix, Poisson arrivals ({sources})")


def trace_workload(path: Path) -> Workload:
    """A trace from its beginning; where it names no tiers, they are drawn as in the mix. Raises TraceError."""
    rows = read_trace(path)
    named = any(row.tier for row in rows)
    tiers = {} if named else {kind.tier: kind.share for kind in TRAFFIC}
    drawn = "" if named else ", tiers drawn " + ", ".join(f"{tier} {share:.0%}" for tier, share in tiers.items())
    return Workload(rows, tiers, f"{path} from its beginning ({len(rows):,} requests{drawn})")


@dataclass(frozen=True, slots=True)
class Pace:
    """How arrivals are fitted to the machine: thinned where there are too many, else brought closer together."""

    speed: float
    keep: float
    requests_per_s: float

    @classmethod
    def of(cls, workload: Workload, capacity: Capacity, *, thin: bool, load: float = LOAD) -> Pace:
        """`thin` = keep the trace's times and drop requests where it offers too much."""
        wanted = load * capacity.requests_per_s
        native = workload.requests_per_s
        if thin and native > wanted:
            return cls(1.0, wanted / native, wanted)
        return cls(wanted / native, 1.0, wanted)

    def __str__(self) -> str:
        how = f"{self.keep:.1%} of its requests, drawn at random" if self.keep < 1 else f"× {self.speed:.3g} in time"
        return f"{self.requests_per_s:.2f} requests/s ({how})"
