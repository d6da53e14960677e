"""The demonstration's own workload: three kinds of traffic with the lengths that were measured for each.

Lengths are drawn from quantiles, prompt and output apart (their rank correlation in these data is below 0.12):

- chat: Azure LLM inference trace 2023, conversation (19,366 requests; Azure/AzurePublicDataset, CC-BY-4.0)
- code: Azure LLM inference trace 2023, code (8,819 requests; Azure/AzurePublicDataset, CC-BY-4.0)
- summarise: arXiv summarisation lengths up to 4k (28,257 pairs; microsoft/vidur, MIT), outputs cut at p90, above
  which that file's own truncation shows
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from hyperflexis_cli.trace import TraceRow

LEVELS = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)
"""What the quantiles below are quantiles of."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """One kind of request."""

    tier: str
    share: float
    """Of all requests; ours, not measured."""
    prompt_quantiles: tuple[int, ...]
    output_quantiles: tuple[int, ...]
    source: str


TRAFFIC = (
    Traffic(
        "chat",
        0.5,
        (2, 29, 181, 207, 396, 1020, 1189, 2734, 4083, 4142, 14050),
        (7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 1000),
        "Azure LLM inference trace 2023, conversation",
    ),
    Traffic(
        "code",
        0.35,
        (3, 17, 75, 147, 578, 1469, 2744, 5187, 7303, 7436, 7437),
        (6, 6, 6, 7, 9, 13, 24, 55, 90, 251, 1899),
        "Azure LLM inference trace 2023, code",
    ),
    Traffic(
        "summarise",
        0.15,
        (1, 73, 748, 1242, 1986, 2730, 3370, 3702, 3813, 3933, 4054),
        (5, 36, 60, 78, 115, 167, 242, 372, 372, 372, 372),
        "arXiv summarisation lengths (Vidur)",
    ),
)


def quantile(quantiles: Sequence[int], level: float) -> int:
    """The value at `level` in [0, 1], between the given quantiles on a logarithmic scale."""
    for upper in range(1, len(LEVELS)):
        if level <= LEVELS[upper]:
            low, high = quantiles[upper - 1], quantiles[upper]
            part = (level - LEVELS[upper - 1]) / (LEVELS[upper] - LEVELS[upper - 1])
            return round(math.exp(math.log(low) * (1 - part) + math.log(high) * part))
    return quantiles[-1]


def draw_mix(count: int, random: Random, traffic: Sequence[Traffic] = TRAFFIC) -> list[TraceRow]:
    """`count` requests with Poisson arrivals at one a second; stretch them with Shape.speed."""
    rows = []
    arrival_s = 0.0
    for kind in random.choices(traffic, [kind.share for kind in traffic], k=count):
        prompt = quantile(kind.prompt_quantiles, random.random())
        output = quantile(kind.output_quantiles, random.random())
        rows.append(TraceRow(arrival_s, prompt, output, kind.tier))
        arrival_s += random.expovariate(1.0)
    return rows
