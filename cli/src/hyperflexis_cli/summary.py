"""A replay in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hyperflexis_cli.record import Record
from hyperflexis_client import Verdict

LATENCIES = ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")
WHOLE = "all"
"""In place of a tier's name: every request."""


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` (0..1) of the values lie, interpolated; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def by_tier(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of each tier, tiers in alphabetical order."""
    tiers: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.tier):
        tiers.setdefault(record.tier, []).append(record)
    return tiers


def summarise_tier(records: Sequence[Record], wall_s: float) -> dict[str, Any]:
    """Counts, attainment (a share of those that count) and latencies in milliseconds."""
    attained = sum(record.attained for record in records)
    excluded = sum(record.verdict is Verdict.EXCLUDED for record in records)
    counted = len(records) - excluded
    ttft = [record.ttft_ms for record in records if record.ttft_ms is not None]
    tpot = [record.tpot_ms for record in records if record.tpot_ms is not None]
    slo = next((record.slo for record in records if record.slo is not None), None)
    return {
        "requests": len(records),
        "attained": attained,
        "excluded": excluded,
        "attainment": attained / counted if counted else None,
        "refused": sum(record.refused for record in records),
        "downgraded": sum(record.downgraded for record in records),
        "failed": sum(record.failed for record in records),
        "slo_ttft_ms": slo.ttft_us / 1e3 if slo else None,
        "slo_tpot_ms": slo.tpot_us / 1e3 if slo else None,
        "ttft_p50_ms": _rounded(percentile(ttft, 0.50)),
        "ttft_p99_ms": _rounded(percentile(ttft, 0.99)),
        "tpot_p50_ms": _rounded(percentile(tpot, 0.50)),
        "tpot_p99_ms": _rounded(percentile(tpot, 0.99)),
        "output_tokens": sum(record.output_tokens for record in records),
        "tokens_per_s": round(sum(record.output_tokens for record in records) / wall_s, 1) if wall_s > 0 else 0.0,
    }


def summarise(records: Sequence[Record], wall_s: float, **about: Any) -> dict[str, Any]:
    """The whole replay; `about` (trace, speed, machine …) is added as it is."""
    total = summarise_tier(records, wall_s)
    late_ms = [record.late_s * 1e3 for record in records]
    judged = [record for record in records if record.finished is not None]
    return {
        "requests": len(records),
        "finished": sum(record.complete for record in records),
        "refused": total["refused"],
        "downgraded": total["downgraded"],
        "failed": total["failed"],
        "lost_tokens": sum(record.lost_tokens for record in records),
        "repeated_tokens": sum(record.repeated_tokens for record in records),
        "wall_s": round(wall_s, 3),
        "attained": total["attained"],
        "attainment": total["attainment"],
        "tiers": {tier: summarise_tier(members, wall_s) for tier, members in by_tier(records).items()},
        "prompt_tokens": sum(record.planned.prompt_tokens for record in records),
        "output_tokens": total["output_tokens"],
        "tokens_per_s": total["tokens_per_s"],
        "clipped": sum(record.planned.clipped for record in records),
        "reconnections": sum(record.reconnections for record in records),
        **{key: total[key] for key in LATENCIES},
        "router_attained": sum(r.finished is not None and r.finished.verdict is Verdict.ATTAINED for r in records),
        "verdicts_that_differ": sum(r.finished is not None and r.finished.verdict is not r.verdict for r in judged),
        "late_p99_ms": _rounded(percentile(late_ms, 0.99)),
        "late_max_ms": _rounded(max(late_ms, default=None)),
        "errors": first_errors(records),
        **about,
    }


def side_by_side(
    summaries: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(tier, policy, sums): the policies of a tier next to each other, the whole of each at the end."""
    for tier in dict.fromkeys(tier for summary in summaries.values() for tier in summary["tiers"]):
        for policy, summary in summaries.items():
            if tier in summary["tiers"]:
                yield tier, policy, summary["tiers"][tier]
    for policy, summary in summaries.items():
        yield WHOLE, policy, summary


def first_errors(records: Sequence[Record], limit: int = 10) -> list[str]:
    """Different errors with their counts, the most frequent first. A refusal is an answer and no error."""
    counts: dict[str, int] = {}
    for record in records:
        if record.error and not record.refused:
            counts[record.error] = counts.get(record.error, 0) + 1
    most = sorted(counts.items(), key=lambda item: -item[1])[:limit]
    return [f"{count} × {error}" if count > 1 else error for error, count in most]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
