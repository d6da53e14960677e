"""What a run came to: faults that fired, what became of the requests, and damage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from remains import Remains
from tally import Tally

DAMAGE = (
    "lost_tokens", "repeated_tokens", "spliced", "failed_requests", "stuck_requests", "stalled_requests",
    "unaccounted", "evicted_replacements", "missing_workers", "live_requests", "live_moves", "leaked_blocks",
    "leaked_leases", "leaked_quarantines", "leaked_reservations", "broken_ways",
)  # fmt: skip
"""Every count must be zero."""
COUNTS = ("flips", "requests", "finished", "cancelled", "tokens_compared", "slow_requests", *DAMAGE)
FAULT_KEYS = ("faults", "not_fired")
BY_KIND = (*FAULT_KEYS, "moves", "moves_failed", "pulls", "kills")
PULLS_WANTED = 10
"""Where documents are shared: as few prove too little."""
NOT_FIRED_SHARE = 0.05
"""A run that missed more of its faults than this proves too little."""


def summary_of(
    tally: Tally, by_kind: Mapping[str, Mapping[str, int]], remains: Remains, **about: Any
) -> dict[str, Any]:
    """`by_kind`: of BY_KIND, what there is."""
    counts = {key: getattr(tally, key) for key in COUNTS if hasattr(tally, key)} | asdict(remains)
    return {
        **{key: dict(sorted(by_kind.get(key, {}).items())) for key in BY_KIND},
        **about,
        **{key: counts[key] for key in COUNTS},
        "latency": latency(tally.silences.longest_s),
        "notes": [*remains.notes(), *tally.failures],
    }


def sum_of(parts: Sequence[Mapping[str, Any]], silences_s: Iterable[float], **about: Any) -> dict[str, Any]:
    """Several cells' summaries as one."""
    return {
        **{key: dict(sorted(sum((Counter(p[key]) for p in parts), Counter()).items())) for key in BY_KIND},
        **about,
        **{key: sum(part[key] for part in parts) for key in COUNTS},
        "latency": latency(list(silences_s)),
        "notes": [note for part in parts for note in part["notes"]],
    }


def latency(silences_s: list[float]) -> dict[str, float]:
    """Over all streams, of the longest silence in each."""
    ordered = sorted(silences_s) or [0.0]

    def quantile(share: float) -> float:
        return round(ordered[max(math.ceil(share * len(ordered)) - 1, 0)], 3)

    return {"p50_gap_s": quantile(0.5), "p99_gap_s": quantile(0.99), "max_gap_s": quantile(1.0)}


def verdict_of(summary: Mapping[str, Any]) -> list[str]:
    """Why the run has failed; empty where it has not."""
    fired, missed = (sum(summary[key].values()) for key in FAULT_KEYS)
    wrong = [f"{key}: {summary[key]}" for key in DAMAGE if summary[key]]
    done, wanted = sum(summary["moves"].values()), summary.get("moves_wanted", 0)
    if done < wanted:
        wrong.append(f"{done} of {wanted} moves were done")
    if summary.get("documents") and (read := summary["pulls"].get("read", 0)) < PULLS_WANTED:
        wrong.append(f"{read} prefixes were read from peers, not {PULLS_WANTED}")
    if missed > NOT_FIRED_SHARE * (fired + missed):
        wrong.append(f"{missed} of {fired + missed} faults did not fire")
    return wrong
