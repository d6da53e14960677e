"""The live side of the fidelity bench: one load on a stack of its own, and what its engines and clients saw."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from hyperflexis_cli.calibration import Capacity, measure_capacity
from hyperflexis_cli.cluster import look_at_cluster
from hyperflexis_cli.display import live_progress
from hyperflexis_cli.measured import choose_model, make_plan
from hyperflexis_cli.plan import Planned
from hyperflexis_cli.record import Record
from hyperflexis_cli.replay import Replay
from hyperflexis_cli.stack import LocalStack
from hyperflexis_cli.stack_settings import Document, built_in_document
from hyperflexis_cli.workload import Workload
from hyperflexis_client import AsyncClient, Model, Models
from hyperflexis_common.config import TierSettings
from hyperflexis_common.step_time import StepTimeModel

WORKERS = 2
BLOCKS, BLOCK_TOKENS = 1_024, 16
MAX_TOKENS, MAX_SEQUENCES = 128, 64
SEED = 0
WARM_UPS, WARM_UP_INFLIGHT = 80, 16
MAX_INFLIGHT = 4_000
TIERS = (
    TierSettings(name="chat", ttft_ms=500, tpot_ms=50, on_violation="refuse"),
    TierSettings(name="code", ttft_ms=500, tpot_ms=30, on_violation="downgrade:chat"),
    TierSettings(name="summarise", ttft_ms=4_000, tpot_ms=100, on_violation="refuse"),
)
"""As the demonstration's, but that each of them says no, and summaries before a short run is over."""
POLICIES = {"hyperflexis": ("hyperflexis", "hyperflexis"), "round_robin+fcfs": ("round_robin", "fcfs")}
"""Scheduler's and worker's."""


@dataclass(frozen=True, slots=True)
class Setting:
    engine: str
    policy: str
    load: float
    """Times the capacity measured."""

    @property
    def name(self) -> str:
        return f"{self.engine} {self.policy} {self.load:g}"

    def document(self, model: Path, log: Path) -> Document:
        document = built_in_document(self.engine, model)
        scheduler, worker = POLICIES[self.policy]
        document["tiers"] = [tier.model_dump(exclude_none=True) for tier in TIERS]
        document["scheduler"] = {"policy": scheduler}
        document["worker"] = {
            "policy": worker,
            "num_blocks": BLOCKS,
            "block_tokens": BLOCK_TOKENS,
            "max_num_tokens": MAX_TOKENS,
            "max_num_seqs": MAX_SEQUENCES,
            "step_log": str(log),
        }
        return document


@dataclass(frozen=True, slots=True)
class LiveRun:
    records: list[Record]
    began_us: float
    """Where the records' times begin, on the clock of the engines' logs."""
    models: list[StepTimeModel]
    """As each worker reported it in the end."""
    mean_errors: list[float]
    """Of its predictions, each made before its step was learned."""
    logs: list[list[dict[str, Any]]]
    """What each engine did (worker.step_log), as long as the load ran."""


async def serve(
    setting: Setting, workload: Workload, rate: float, seconds: float, model: Path, directory: Path, console: Console
) -> LiveRun:
    log = directory / "steps"
    document = setting.document(model, log.resolve())
    stack = LocalStack(document, directory, free_router_port=True, engine=setting.engine, workers=WORKERS, schedulers=1)
    async with stack, AsyncClient(stack.routers) as client:
        await stack.wait_for_workers()
        models = await client.list_models()
        served = choose_model(models, None)
        await _warm_up(client, workload, models, served)
        planned = _planned(workload, models, served, rate, seconds)
        replay = Replay(client, planned, served, seed=SEED, max_inflight=MAX_INFLIGHT)
        async with live_progress(console, replay.progress):
            records = await replay.run()
        cluster = await look_at_cluster(stack.schedulers)
        assert cluster is not None
    began_us = replay.began_s * 1e6
    fits = [worker.step_time for worker in sorted(cluster.workers, key=lambda worker: worker.identity.worker_id)]
    return LiveRun(
        records,
        began_us,
        [_model(fit) for fit in fits],
        [fit.mean_error for fit in fits],
        [_lines(path, began_us) for path in sorted(log.glob("*.jsonl"))],
    )


async def capacity(engine: str, workload: Workload, model: Path, directory: Path) -> Capacity:
    """Of requests open at any time, as the demonstration measures it, with engines that give nobody up."""
    document = Setting(engine, "round_robin+fcfs", 1.0).document(model, (directory / "steps").resolve())
    stack = LocalStack(document, directory, free_router_port=True, engine=engine, workers=WORKERS, schedulers=1)
    async with stack, AsyncClient(stack.routers) as client:
        await stack.wait_for_workers()
        models = await client.list_models()
        served = choose_model(models, None)
        planned = make_plan(workload.rows, workload.shape(served.context_length), models, SEED + 1)
        return await measure_capacity(client, planned, served, concurrency=16 * WORKERS, seed=SEED, window_s=10.0)


def _planned(workload: Workload, models: Models, served: Model, rate: float, seconds: float) -> list[Planned]:
    shape = replace(workload.shape(served.context_length), speed=rate / workload.requests_per_s, duration_s=seconds)
    return make_plan(workload.rows, shape, models, SEED)


async def _warm_up(client: AsyncClient, workload: Workload, models: Models, served: Model) -> None:
    """What a stack does once is done before it is measured."""
    planned = make_plan(workload.rows[:WARM_UPS], workload.shape(served.context_length), models, SEED)
    at_once = [replace(request, at_s=0.0) for request in planned]
    await Replay(client, at_once, served, seed=SEED + 3, max_inflight=WARM_UP_INFLIGHT).run()


def _model(fit: Any) -> StepTimeModel:
    return StepTimeModel(fit.c0_us, fit.c1_us, fit.c2_us, fit.c3_us, fit.c4_us, fit.c5_us, fit.host_us)


def _lines(path: Path, from_us: float) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.get("began_us", line.get("sent_us")) >= from_us]
