"""The same load on a fresh stack for each policy: calibrated once, and then held to for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyperflexis_cli.calibration import (
    TPOT_SLOWDOWN,
    TTFT_SLOWDOWN,
    Calibration,
    attainable_objectives,
    measure_capacity,
)
from hyperflexis_cli.console import out
from hyperflexis_cli.machine import describe_machine
from hyperflexis_cli.measured import Measured, choose_model, make_plan, measure
from hyperflexis_cli.policy import Policy
from hyperflexis_cli.replay import Objective
from hyperflexis_cli.stack import LocalStack
from hyperflexis_cli.workload import Pace, Workload
from hyperflexis_client import AsyncClient, Model, Models

WORKERS = 2
CONCURRENCY = 16 * WORKERS
MAX_INFLIGHT = 1_000


@dataclass(slots=True, kw_only=True)
class Demonstration:
    """What is offered to the stack, whatever it is scheduled by. `run` once for each policy."""

    workload: Workload
    thin: bool
    """Keep the workload's times, and drop requests where it offers too much."""
    document: Mapping[str, Any]
    engine: str
    load: float
    """As a multiple of the capacity measured."""
    duration_s: float
    seed: int
    about: dict[str, str] = dataclasses.field(default_factory=dict)
    """How it was measured, in words; the same on the terminal and in the report."""
    _calibration: Calibration | None = None

    async def run(self, policy: Policy) -> Measured:
        """Raises StackError, HyperFlexisError."""
        document = policy.applied_to(self.document)
        stack = LocalStack(document, free_router_port=True, engine=self.engine, workers=WORKERS)
        out.print(f"starting a stack with {WORKERS} {self.engine} workers, logs in {stack.run_dir}", soft_wrap=True)
        async with stack, AsyncClient(stack.routers) as client:
            await stack.wait_for_workers()
            models = await client.list_models()
            model = choose_model(models, None)
            # Every stack goes through it, so that none runs warmer than another; the first one's figures hold for all.
            calibration = await self._calibrate(client, models, model)
            self._calibration = self._calibration or calibration
            return await self._measure(client, models, model, policy, self._calibration)

    async def _calibrate(self, client: AsyncClient, models: Models, model: Model) -> Calibration:
        planned = make_plan(self.workload.rows, self.workload.shape(model.context_length), models, self.seed + 1)
        why = "calibrating" if self._calibration is None else "warming up as the first stack was"
        out.print(f"{why}: a few requests of each tier, one by one", soft_wrap=True)
        objectives = await attainable_objectives(client, planned, model, models.tiers, seed=self.seed)
        out.print(f"{why}: {CONCURRENCY} requests of the workload open at any time, for 8 s", soft_wrap=True)
        capacity = await measure_capacity(client, planned, model, concurrency=CONCURRENCY, seed=self.seed)
        return Calibration(capacity, objectives)

    async def _measure(
        self, client: AsyncClient, models: Models, model: Model, policy: Policy, calibration: Calibration
    ) -> Measured:
        workload, capacity = self.workload, calibration.capacity
        pace = Pace.of(workload, capacity, thin=self.thin, load=self.load)
        if not self.about:
            self.about = self._told(models, model, calibration, pace)
            for key, value in self.about.items():
                out.print(f"[dim]{key}:[/] {value}", soft_wrap=True)
        shape = dataclasses.replace(
            workload.shape(model.context_length), speed=pace.speed, keep=pace.keep, duration_s=self.duration_s
        )
        return await measure(
            client,
            make_plan(workload.rows, shape, models, self.seed),
            model,
            out,
            seed=self.seed,
            max_inflight=MAX_INFLIGHT,
            objectives=calibration.objectives,
            policy=policy.name,
            trace=workload.sources,
            speed=pace.speed,
            keep=pace.keep,
            scale=shape.scale_lengths,
            capacity_tokens_per_s=round(capacity.tokens_per_s, 1),
            load=self.load,
            engine=self.engine,
            machine=describe_machine(),
        )

    def _told(self, models: Models, model: Model, calibration: Calibration, pace: Pace) -> dict[str, str]:
        workload, capacity = self.workload, calibration.capacity
        return {
            "Workload": workload.sources,
            "Lengths": f"× {workload.lengths(model.context_length):g}, so that 99 % of the requests fit the model's "
            f"{model.context_length:,} tokens of context; the rest is clipped",
            "Capacity": f"{capacity.tokens_per_s:,.0f} tokens/s, prompt and output together, by a burst of this "
            "workload with no promise",
            "Load": f"{self.load:.0%} of that: {pace}",
            "Objectives": _objectives(models, calibration.objectives),
            "Stack": f"one router, two schedulers, a scaler, {WORKERS} {self.engine} workers of model {model.name}, "
            "Redis",
            "Machine": f"{describe_machine()}; the client runs on it too",
            "Seed": str(self.seed),
        }


def _objectives(models: Models, loosened: Mapping[str, Objective]) -> str:
    """Each tier's, and which of them this machine has loosened."""
    parts = []
    for tier in models.tiers:
        asked = loosened.get(tier.tier, Objective())
        ttft = f"{tier.ttft_us / 1e3:g} ms" + (f" loosened to {asked.ttft_ms:g} ms" if asked.ttft_ms else "")
        tpot = f"{tier.tpot_us / 1e3:g} ms" + (f" loosened to {asked.tpot_ms:g} ms" if asked.tpot_ms else "")
        parts.append(f"{tier.tier}: TTFT {ttft}, TPOT {tpot}")
    why = f" (loosened = {TTFT_SLOWDOWN:g} times the median TTFT, {TPOT_SLOWDOWN:g} the TPOT of a request alone here)"
    return "; ".join(parts) + (why if loosened else "")
