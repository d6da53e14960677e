"""What a running stack can do, measured with the very workload that it will get: one request alone, and a burst."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hyperflexis_cli.plan import Planned
from hyperflexis_cli.replay import Objective, Replay
from hyperflexis_cli.summary import by_tier, percentile
from hyperflexis_client import AsyncClient, HyperFlexisError, Model, Slo

ALONE_PER_TIER = 5
WARM_UPS = 2
TTFT_SLOWDOWN, TPOT_SLOWDOWN = 6.0, 5.0
"""How much slower than alone a request may be: the p99 objectives of Splitwise (ISCA 2024)."""
UNHURRIED = Objective(ttft_ms=600_000.0, tpot_ms=10_000.0)
"""Asked for while measuring: no scheduling refuses or puts off what a stack could do."""
BURST_REQUESTS = 10_000
"""More than any stack on one machine ends within the window."""
WARM_UP_S = 2.0
WINDOW_S = 6.0


@dataclass(frozen=True, slots=True)
class Calibration:
    capacity: Capacity
    objectives: Mapping[str, Objective]
    """Of the tiers that this machine must loosen."""


@dataclass(frozen=True, slots=True)
class Capacity:
    tokens_per_s: float
    """Prompt and output tokens together."""
    tokens_per_request: float

    @property
    def requests_per_s(self) -> float:
        return self.tokens_per_s / self.tokens_per_request


async def measure_capacity(
    client: AsyncClient,
    planned: Sequence[Planned],
    model: Model,
    *,
    concurrency: int,
    seed: int,
    warm_up_s: float = WARM_UP_S,
    window_s: float = WINDOW_S,
) -> Capacity:
    """Tokens a second with `concurrency` requests of the plan open at any time. Raises HyperFlexisError for none.

    A prompt counts when its first token comes, an output token when it comes; what is open at the end is cancelled.
    """
    # Over and over, with other prompts each time: a short trace must not end before the window does.
    at_once = [dataclasses.replace(planned[i % len(planned)], index=i, at_s=0.0) for i in range(BURST_REQUESTS)]
    unhurried = _unhurried(planned)
    replay = Replay(
        client, at_once, model, seed=seed + 1, max_inflight=concurrency, detach_grace_ms=0, objectives=unhurried
    )
    run = asyncio.create_task(replay.run())
    progress = replay.progress
    try:
        await asyncio.wait({run}, timeout=warm_up_s)
        began_s, began = progress.elapsed_s, progress.prompt_tokens + progress.output_tokens
        await asyncio.wait({run}, timeout=window_s)
        took_s = progress.elapsed_s - began_s
        tokens = progress.prompt_tokens + progress.output_tokens - began
    finally:
        run.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await run
    if tokens <= 0 or took_s <= 0:
        error = next((record.error for record in progress.records if record.error), "no token came")
        raise HyperFlexisError(f"the calibration burst failed: {error}")
    mean = sum(request.prompt_tokens + request.output_tokens for request in planned) / len(planned)
    return Capacity(tokens / took_s, mean)


async def attainable_objectives(
    client: AsyncClient, planned: Sequence[Planned], model: Model, tiers: Sequence[Slo], *, seed: int
) -> dict[str, Objective]:
    """Looser objectives for the tiers whose own this machine would miss even when idle, or nearly.

    A few requests of each tier are sent one by one. Where SLOWDOWN times the median of what they took is more than
    the tier promises, it is the objective; the tier's own stays where it is looser.
    """
    chosen = [request for tier in tiers for request in _first_of(planned, tier.tier)]
    # What is sent first pays for what a stack does once; it is sent twice and not counted.
    one_by_one = [dataclasses.replace(request, at_s=0.0) for request in (*chosen[:WARM_UPS], *chosen)]
    unhurried = _unhurried(planned)
    replay = Replay(client, one_by_one, model, seed=seed + 2, max_inflight=1, detach_grace_ms=0, objectives=unhurried)
    records = by_tier((await replay.run())[WARM_UPS:])
    objectives = {}
    for slo in tiers:
        alone = records.get(slo.tier, [])
        ttft_ms = TTFT_SLOWDOWN * (percentile([r.ttft_ms for r in alone if r.ttft_ms is not None], 0.5) or 0.0)
        tpot_ms = TPOT_SLOWDOWN * (percentile([r.tpot_ms for r in alone if r.tpot_ms is not None], 0.5) or 0.0)
        objective = Objective(
            ttft_ms=float(round(ttft_ms)) if ttft_ms > slo.ttft_us / 1e3 else None,
            tpot_ms=float(round(tpot_ms)) if tpot_ms > slo.tpot_us / 1e3 else None,
        )
        if objective != Objective():
            objectives[slo.tier] = objective
    return objectives


def _unhurried(planned: Sequence[Planned]) -> dict[str, Objective]:
    return dict.fromkeys({request.tier for request in planned}, UNHURRIED)


def _first_of(planned: Sequence[Planned], tier: str) -> list[Planned]:
    return [request for request in planned if request.tier == tier][:ALONE_PER_TIER]
