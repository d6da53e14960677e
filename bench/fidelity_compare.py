"""What became of the same requests live and in the simulator, side by side. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ALL = "all"
WITHIN = 0.03
"""Attainment, simulated less live."""
RESAMPLES = 2_000
LATENCIES = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request as its client saw it, latencies where it finished."""

    tier: str
    """The one asked for."""
    attained: bool
    refused: bool = False
    downgraded: bool = False
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    """None with fewer than two tokens, too."""
    e2e_ms: float | None = None


def figures(*runs: Sequence[Outcome]) -> dict[str, Any]:
    """Of several runs over the same requests: counts are means over them, percentiles of all together."""
    outcomes = [outcome for run in runs for outcome in run]
    row: dict[str, Any] = {
        "requests": len(outcomes) // len(runs),
        "attainment": sum(outcome.attained for outcome in outcomes) / max(len(outcomes), 1),
        "refused": sum(outcome.refused for outcome in outcomes) / len(runs),
        "downgraded": sum(outcome.downgraded for outcome in outcomes) / len(runs),
    }
    for name in LATENCIES:
        values = _latencies(outcomes, name)
        row[f"{name}_p50_ms"] = percentile(values, 50)
        row[f"{name}_p99_ms"] = percentile(values, 99)
    return row


def percentile(values: Sequence[float], level: float) -> float | None:
    return float(np.percentile(values, level)) if len(values) else None


def p99_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of the 99th percentile; None without values."""
    if not len(values):
        return None
    known, random = np.asarray(values), np.random.default_rng(seed)
    drawn = known[random.integers(len(known), size=(RESAMPLES, len(known)))]
    low, high = np.percentile(np.percentile(drawn, 99, axis=1), [2.5, 97.5])
    return float(low), float(high)


def compared(live: Sequence[Outcome], simulated: Sequence[Sequence[Outcome]]) -> list[dict[str, Any]]:
    """A row per tier and one for all: both sides, and whether they agree."""
    tiers = sorted({outcome.tier for outcome in live})
    return [_compared(tier, _of(live, tier), [_of(run, tier) for run in simulated]) for tier in (*tiers, ALL)]


def _compared(tier: str, live: Sequence[Outcome], simulated: Sequence[Sequence[Outcome]]) -> dict[str, Any]:
    row: dict[str, Any] = {"tier": tier, "live": figures(live), "simulated": figures(*simulated)}
    row["attainment_off"] = row["simulated"]["attainment"] - row["live"]["attainment"]
    row["attainment_holds"] = abs(row["attainment_off"]) <= WITHIN
    row["p99"] = {}
    for name in LATENCIES:
        interval, found = p99_interval(_latencies(live, name)), row["simulated"][f"{name}_p99_ms"]
        of_runs = [p99 for run in simulated if (p99 := percentile(_latencies(run, name), 99)) is not None]
        row["p99"][name] = {
            "live_interval_ms": interval,
            "simulated_range_ms": (min(of_runs), max(of_runs)) if of_runs else None,
            "holds": None if interval is None or found is None else interval[0] <= found <= interval[1],
        }
    return row


def tally(rows: Iterable[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """How many of the rows keep each target."""
    rows = list(rows)
    inside = [p99["holds"] for row in rows for p99 in row["p99"].values() if p99["holds"] is not None]
    return {
        "attainment": {"of": len(rows), "hold": sum(row["attainment_holds"] for row in rows)},
        "p99": {"of": len(inside), "hold": sum(inside)},
    }


def _of(outcomes: Sequence[Outcome], tier: str) -> list[Outcome]:
    return [outcome for outcome in outcomes if tier in (ALL, outcome.tier)]


def _latencies(outcomes: Sequence[Outcome], name: str) -> list[float]:
    values = (getattr(outcome, f"{name}_ms") for outcome in outcomes)
    return [value for value in values if value is not None]
