"""`hyperflexis demo`: a stack on this machine, a fitted load on it, and a report of what was measured."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from hyperflexis_cli.calibration import (
    TPOT_SLOWDOWN,
    TTFT_SLOWDOWN,
    Capacity,
    attainable_objectives,
    measure_capacity,
)
from hyperflexis_cli.commands.up import stack_document, stop_signal
from hyperflexis_cli.console import FAILED, INTERRUPTED, USAGE, fail, friendly, out
from hyperflexis_cli.display import print_summary
from hyperflexis_cli.machine import describe_machine
from hyperflexis_cli.measured import Measured, choose_model, make_plan, measure
from hyperflexis_cli.replay import Objective
from hyperflexis_cli.stack import LocalStack
from hyperflexis_cli.workload import LOAD, Pace, Workload, built_in_workload, trace_workload
from hyperflexis_client import AsyncClient, Model, Models

WORKERS = 2
CONCURRENCY = 16 * WORKERS
SEED = 0
MAX_INFLIGHT = 1_000


@friendly
async def demo(
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV: arrival_s,prompt_tokens,output_tokens[,tier]. Default: a mix.", show_default=False),
    ] = None,
    engine: Annotated[Literal["embedded", "modelled"], typer.Option(help="What the workers run.")] = "embedded",
    duration: Annotated[float, typer.Option(help="Seconds of load.")] = 60.0,
    out_dir: Annotated[Path, typer.Option("--out", help="report.html and summary.json go here.")] = Path("build/demo"),
) -> int:
    """Runs a stack with two workers, measures what it can do, offers it 40 % of that, and writes a report.

    Ends with status 1 where a token was lost or repeated, or a request failed.
    """
    if duration <= 0:
        fail("--duration must be above 0", USAGE)
    workload = trace_workload(trace) if trace else built_in_workload(SEED)
    with stop_signal() as stopping:
        running = asyncio.create_task(_demo(workload, trace is not None, engine, duration, out_dir))
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if running.done():
            return running.result()
        out.print("stopping")
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        return INTERRUPTED


async def _demo(workload: Workload, from_trace: bool, engine: str, duration_s: float, out_dir: Path) -> int:
    document = await stack_document(None, engine)
    stack = LocalStack(document, free_router_port=True, engine=engine, workers=WORKERS)
    out.print(f"starting a stack with {WORKERS} {engine} workers, logs in {stack.run_dir}", soft_wrap=True)
    async with stack, AsyncClient(stack.routers) as client:
        await stack.wait_for_workers()
        models = await client.list_models()
        model = choose_model(models, None)
        capacity, objectives = await _calibrate(client, workload, models, model)
        pace = Pace.of(workload, capacity, thin=from_trace)
        about = _about(workload, model, models, capacity, objectives, pace, engine)
        for key, value in about.items():
            out.print(f"[dim]{key}:[/] {value}", soft_wrap=True)
        shape = dataclasses.replace(
            workload.shape(model.context_length), speed=pace.speed, keep=pace.keep, duration_s=duration_s
        )
        planned = make_plan(workload.rows, shape, models, SEED)
        measured = await measure(
            client,
            planned,
            model,
            out,
            seed=SEED,
            max_inflight=MAX_INFLIGHT,
            objectives=objectives,
            trace=workload.sources,
            speed=pace.speed,
            keep=pace.keep,
            scale=shape.scale_lengths,
            capacity_tokens_per_s=round(capacity.tokens_per_s, 1),
            load=LOAD,
            engine=engine,
            machine=describe_machine(),
        )
    return await _finish(measured, about, out_dir)


async def _calibrate(
    client: AsyncClient, workload: Workload, models: Models, model: Model
) -> tuple[Capacity, dict[str, Objective]]:
    planned = make_plan(workload.rows, workload.shape(model.context_length), models, SEED + 1)
    out.print("calibrating: a few requests of each tier, one by one", soft_wrap=True)
    objectives = await attainable_objectives(client, planned, model, models.tiers, seed=SEED)
    out.print(f"calibrating: {CONCURRENCY} requests of the workload open at any time, for 8 s", soft_wrap=True)
    return await measure_capacity(client, planned, model, concurrency=CONCURRENCY, seed=SEED), objectives


def _objectives(models: Models, loosened: dict[str, Objective]) -> str:
    """Each tier's, and which of them this machine has loosened."""
    parts = []
    for tier in models.tiers:
        asked = loosened.get(tier.tier, Objective())
        ttft = f"{tier.ttft_us / 1e3:g} ms" + (f" loosened to {asked.ttft_ms:g} ms" if asked.ttft_ms else "")
        tpot = f"{tier.tpot_us / 1e3:g} ms" + (f" loosened to {asked.tpot_ms:g} ms" if asked.tpot_ms else "")
        parts.append(f"{tier.tier}: TTFT {ttft}, TPOT {tpot}")
    why = f" (loosened = {TTFT_SLOWDOWN:g} times the median TTFT, {TPOT_SLOWDOWN:g} the TPOT of a request alone here)"
    return "; ".join(parts) + (why if loosened else "")


def _about(
    workload: Workload,
    model: Model,
    models: Models,
    capacity: Capacity,
    objectives: dict[str, Objective],
    pace: Pace,
    engine: str,
) -> dict[str, str]:
    """How it was measured, in words; the same on the terminal and in the report."""
    return {
        "Workload": workload.sources,
        "Lengths": f"× {workload.lengths(model.context_length):g}, so that 99 % of the requests fit the model's "
        f"{model.context_length:,} tokens of context; the rest is clipped",
        "Capacity": f"{capacity.tokens_per_s:,.0f} tokens/s, prompt and output together, by a burst of this workload",
        "Load": f"{LOAD:.0%} of that: {pace}",
        "Objectives": _objectives(models, objectives),
        "Stack": f"one router, two schedulers, a scaler, {WORKERS} {engine} workers of model {model.name}, Redis",
        "Machine": f"{describe_machine()}; the client runs on it too",
        "Seed": str(SEED),
    }


async def _finish(measured: Measured, about: dict[str, str], out_dir: Path) -> int:
    print_summary(out, measured.summary)
    report, summary = out_dir / "report.html", out_dir / "summary.json"
    await measured.write(summary, report, about, "HyperFlexis demonstration")
    out.print(f"report: {report}   summary: {summary}", soft_wrap=True)
    return 0 if measured.clean else FAILED
