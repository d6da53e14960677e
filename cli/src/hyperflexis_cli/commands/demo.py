"""`hyperflexis demo`: a stack on this machine, a fitted load on it, and a report of what was measured."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from hyperflexis_cli.commands.up import stack_document, stop_signal
from hyperflexis_cli.comparison import Comparison
from hyperflexis_cli.console import FAILED, INTERRUPTED, USAGE, fail, friendly, out
from hyperflexis_cli.demonstration import Demonstration
from hyperflexis_cli.display import comparison_table, print_summary, print_totals
from hyperflexis_cli.examples import examples
from hyperflexis_cli.measured import Measured
from hyperflexis_cli.policy import OURS, Policy, PolicyError
from hyperflexis_cli.workload import LOAD, OVERLOAD, built_in_workload, trace_workload

SEED = 0


@friendly
async def demo(
    trace: Annotated[
        Path | None,
        typer.Option(help="CSV: arrival_s,prompt_tokens,output_tokens[,tier]. Default: a mix.", show_default=False),
    ] = None,
    engine: Annotated[Literal["embedded", "modelled"], typer.Option(help="What the workers run.")] = "embedded",
    policy: Annotated[
        str,
        typer.Option(help="hyperflexis, or <scheduler>+<worker> as in round_robin+fcfs; several with commas."),
    ] = OURS,
    load: Annotated[
        float | None,
        typer.Option(
            help=f"Offered, as a multiple of the capacity. Default: {LOAD:g}; {OVERLOAD:g} for several policies.",
            show_default=False,
        ),
    ] = None,
    duration: Annotated[float, typer.Option(help="Seconds of load.")] = 60.0,
    out_dir: Annotated[Path, typer.Option("--out", help="report.html and summary.json go here.")] = Path("build/demo"),
) -> int:
    """Runs a stack with two workers, measures what it can do, offers it 40 % of that, and writes a report.

    Several policies run in turn, each on its own fresh stack, with the same requests at the same times.

    Ends with status 1 where a token was lost or repeated, or a request failed. A refusal is no failure.
    """
    if duration <= 0:
        fail("--duration must be above 0", USAGE)
    if load is not None and load <= 0:
        fail("--load must be above 0", USAGE)
    try:
        policies = Policy.parse_all(policy)
    except PolicyError as error:
        fail(f"--policy: {error}", USAGE)
    workload = trace_workload(trace) if trace else built_in_workload(SEED)
    demonstration = Demonstration(
        workload=workload,
        thin=trace is not None,
        document=await stack_document(None, engine),
        engine=engine,
        load=load if load is not None else LOAD if len(policies) == 1 else OVERLOAD,
        duration_s=duration,
        seed=SEED,
    )
    with stop_signal() as stopping:
        running = asyncio.create_task(_run(demonstration, policies, out_dir))
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


async def _run(demonstration: Demonstration, policies: list[Policy], out_dir: Path) -> int:
    measured: dict[str, Measured] = {}
    for policy in policies:
        if len(policies) > 1:
            out.print(f"[bold]{policy.name}[/] ({len(measured) + 1} of {len(policies)})")
        measured[policy.name] = await demonstration.run(policy)
    report, summary = out_dir / "report.html", out_dir / "summary.json"
    title = "HyperFlexis demonstration"
    if len(policies) == 1:
        [only] = measured.values()
        print_summary(out, only.summary)
        for example in examples(only.records):
            out.print(escape(example), soft_wrap=True)
        await only.write(summary, report, demonstration.about, title)
        clean = only.clean
    else:
        comparison = Comparison(measured)
        _print(comparison)
        await comparison.write(summary, report, demonstration.about, title)
        clean = comparison.clean
    out.print(f"report: {report}   summary: {summary}", soft_wrap=True)
    return 0 if clean else FAILED


def _print(comparison: Comparison) -> None:
    summaries: Mapping[str, Mapping[str, object]] = comparison.summary["policies"]
    out.print(comparison_table(summaries))
    for name, summary in summaries.items():
        print_totals(out, summary, name)
    for sentence in comparison.sentences():
        out.print(escape(sentence), soft_wrap=True)
