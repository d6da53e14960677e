"""`hyperflexis simulate`: a trace in virtual time, under one policy or several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyperflexis_cli.console import INTERRUPTED, USAGE, fail, out
from hyperflexis_cli.simulation_display import SimulationProgress, outcome_table, policies_table
from hyperflexis_cli.trace import read_trace

if TYPE_CHECKING:
    from hyperflexis_sim.experiment import Experiment
    from hyperflexis_sim.tiers import Promise
    from hyperflexis_sim.workload import Workload


def _list_policies(wanted: str) -> str:
    """`--policy list` is answered before anything else is asked for."""
    if wanted.strip() == "list":
        from hyperflexis_sim.policies import POLICIES

        out.print(policies_table({name: policy.description for name, policy in POLICIES.items()}))
        raise typer.Exit()
    return wanted


def simulate(
    trace: Annotated[Path, typer.Option(help="CSV: arrival_s,prompt_tokens,output_tokens[,tier].")],
    json_path: Annotated[Path, typer.Option("--json", help="Write the rows here.")],
    tiers: Annotated[
        Path | None,
        typer.Option(
            help="YAML with `tiers:` as in the stack's, each with a `share` of a trace that names none. "
            "Default: chat, code, math, summarise.",
            show_default=False,
        ),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(help="GPU/MODEL/TP, or a file of `hyperflexis profile`; several with +, for workers in turn."),
    ] = "h200/llama-3.1-8b/tp1",
    workers: Annotated[int, typer.Option(min=1, help="How many workers.")] = 4,
    policy: Annotated[
        str, typer.Option(help="One or several with commas; `list` names them.", callback=_list_policies, is_eager=True)
    ] = "hyperflexis",
    load: Annotated[str, typer.Option(help="Times the trace's own rate; several with commas.")] = "1",
    seed: Annotated[int, typer.Option(min=0, help="Of step noise, drawn tiers and jitter.")] = 0,
    duration: Annotated[
        float | None, typer.Option(help="Only what arrives within this many seconds.", show_default=False)
    ] = None,
    jitter: Annotated[
        bool, typer.Option("--jitter", help="Spread arrivals that share a timestamp until the next one.")
    ] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Plot attainment over load, as HTML beside the JSON.")] = False,
) -> None:
    """Serves a trace in virtual time, with the scheduler's and the workers' own policies or with a baseline's, and says
    what became of each tier's promises.

    A seed gives one result. How latencies, reports and the KV pool are modelled: sim/README.md.
    """
    from hyperflexis_sim.experiment import Experiment
    from hyperflexis_sim.profiles import worker_kinds

    try:
        policies, loads = _names(policy), _loads(load)
        worker_kinds(profile, workers)
        given, promises = _given(trace, tiers, seed, jitter)
        if duration is not None and duration <= 0:
            raise ValueError("--duration must be above 0")
    except ValueError as error:
        fail(str(error), USAGE)
    served = {factor: given.at_rate(given.rate * factor) for factor in loads}
    if duration is not None:
        served = {factor: workload.within(duration) for factor, workload in served.items()}
    rows = _run(
        Experiment(trace.stem, workload, promises, profile, workers, name, factor, seed)
        for factor, workload in served.items()
        for name in policies
    )
    out.print(outcome_table(rows))
    about = {
        "Trace": f"{trace}, {len(given.arrival_s):,} requests, {given.rate:.3g}/s at load 1",
        "Workers": f"{workers} of {profile}",
        "Seed": str(seed),
    }
    _write(rows, about, json_path, plot, f"Simulation of {trace.name}")


def _given(trace: Path, tiers: Path | None, seed: int, jitter: bool) -> tuple[Workload, Mapping[str, Promise]]:
    """The trace at its own rate, and what is promised. Raises ValueError."""
    from hyperflexis_sim.tiers import FOUR_TASKS, read_tiers
    from hyperflexis_sim.workload import from_trace

    promises = read_tiers(tiers) if tiers else FOUR_TASKS
    workload = from_trace(read_trace(trace), promises, seed, jitter=jitter)
    if not 0 < workload.rate < float("inf"):
        raise ValueError(f"{trace}: a load needs requests that arrive at different times")
    return workload, promises


def _names(policy: str) -> list[str]:
    """Raises ValueError."""
    from hyperflexis_sim.policies import policy_of

    names = list(dict.fromkeys(name.strip() for name in policy.split(",") if name.strip()))
    if not names:
        raise ValueError("--policy names none; `--policy list` shows them")
    for name in names:
        policy_of(name)
    return names


def _loads(load: str) -> list[float]:
    """Raises ValueError."""
    loads = []
    for word in load.split(","):
        try:
            factor = float(word)
        except ValueError:
            factor = 0.0
        if not 0 < factor < float("inf"):
            raise ValueError(f"--load takes factors above 0, with commas between them, not {word.strip()!r}")
        loads.append(factor)
    return loads


def _run(experiments: Iterable[Experiment]) -> list[dict[str, Any]]:
    """What is done when Ctrl-C comes is lost: one result, or none."""
    rows = []
    try:
        with SimulationProgress(out) as progress:
            for each in experiments:
                tick = progress.begin(f"{each.policy}, load {each.load:g}", each.until_s)
                rows += each.run(tick)
                progress.end()
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except ValueError as error:
        fail(str(error), USAGE)
    return rows


def _write(rows: list[dict[str, Any]], about: dict[str, str], json_path: Path, plot: bool, title: str) -> None:
    written = [json_path]
    try:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        if plot:
            # matplotlib takes a second to import.
            from hyperflexis_cli.load_report import render_load_report

            page = json_path.with_suffix(".html")
            page.write_text(render_load_report(rows, about, title), encoding="utf-8")
            written.append(page)
    except OSError as error:
        fail(f"cannot write {error.filename or json_path}: {error.strerror}", USAGE)
    out.print(f"written: {', '.join(map(str, written))}", soft_wrap=True)
