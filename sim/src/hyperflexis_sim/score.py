"""What became of the requests, per tier and in all: the rows of the benches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hyperflexis_sim.request import FINISHED, REFUSED, SimRequest
from hyperflexis_sim.tiers import ALL


def scores(requests: Sequence[SimRequest], seconds: float) -> list[dict[str, Any]]:
    """A row for each tier, and one for `all`. `seconds` = over how long these requests arrived.

    Percentiles are of finished requests; null where there is none. token_deadline_attainment = share of the requests
    that finished with every token k in time for arrival + TTFT + k TPOT. migrated = those that ran on more than one
    worker; move_p99_ms = of the pauses in which they went. cached, pulled, somewhere share = of the prompt tokens of
    finished requests, found where they ran, read from a peer among them, and kept by the worker that had most.
    """
    tiers = list(dict.fromkeys(request.tier_promised for request in requests))
    rows = [_row(tier, [r for r in requests if r.tier_promised == tier], seconds) for tier in sorted(tiers)]
    return [*rows, _row(ALL, requests, seconds)]


def _row(tier: str, requests: Sequence[SimRequest], seconds: float) -> dict[str, Any]:
    finished = [request for request in requests if request.state == FINISHED]
    attained = sum(request.attained for request in requests)
    kept_tokens = sum(request.prompt_tokens + request.output_tokens for request in requests if request.attained)
    tokens = sum(request.prompt_tokens + request.output_tokens for request in requests)
    prompt_tokens = max(sum(request.prompt_tokens for request in finished), 1)
    ttft = _ms(request.first_us - request.arrival_us for request in finished)
    tpot = _ms(request.mean_tpot_us for request in finished if request.made > 1)
    e2e = _ms(request.last_us - request.arrival_us for request in finished)
    return {
        "tier": tier,
        "requests": len(requests),
        "attained": attained,
        "attainment": attained / max(len(requests), 1),
        "token_weighted_attainment": kept_tokens / max(tokens, 1),
        "goodput_rps": attained / seconds,
        "ttft_p50_ms": _percentile(ttft, 50),
        "ttft_p99_ms": _percentile(ttft, 99),
        "tpot_p50_ms": _percentile(tpot, 50),
        "tpot_p99_ms": _percentile(tpot, 99),
        "e2e_p50_ms": _percentile(e2e, 50),
        "e2e_p99_ms": _percentile(e2e, 99),
        "gap_p99_ms": _percentile(_ms(r.worst_gap_us for r in finished if r.made > 1), 99),
        "refused": sum(request.state == REFUSED for request in requests),
        "downgraded": sum(request.downgraded for request in requests),
        "best_effort": sum(request.best_effort for request in requests),
        "unfinished": sum(request.state not in (FINISHED, REFUSED) for request in requests),
        "migrated": sum(request.migrations > 0 for request in requests),
        "move_p99_ms": _percentile(_ms(r.longest_move_us for r in finished if r.migrations), 99),
        "cached_share": sum(r.cached_tokens for r in finished) / prompt_tokens,
        "pulled_share": sum(r.pulled_tokens for r in finished) / prompt_tokens,
        "somewhere_share": sum(r.somewhere_tokens for r in finished) / prompt_tokens,
        "prefill_saved_s": sum(r.saved_us for r in finished) / 1e6,
        "token_deadline_attainment": sum(r.late_tokens == 0 for r in finished) / max(len(requests), 1),
    }


def by_prompt_length(requests: Sequence[SimRequest], bounds: Sequence[int]) -> list[dict[str, Any]]:
    """Attainment of the requests whose prompt is shorter than each bound and not than the one before."""
    rows = []
    for low, high in zip((0, *bounds), (*bounds, 1 << 62), strict=True):
        inside = [request for request in requests if low <= request.prompt_tokens < high]
        if inside:
            share = sum(request.attained for request in inside) / len(inside)
            rows.append({"from_tokens": low, "below_tokens": high, "requests": len(inside), "attainment": share})
    return rows


def _ms(values_us: Iterable[float]) -> list[float]:
    return [value / 1e3 for value in values_us]


def _percentile(values: list[float], level: float) -> float | None:
    return float(np.percentile(values, level)) if values else None
