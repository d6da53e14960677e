"""`hyperflexis simulate`: a trace in virtual time, under one policy or several."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
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


TiersPath = Annotated[
    Path | None,
    typer.Option(
        help="YAML with `tiers:` as in the stack's, each with a `share` of a trace that names none. "
        "Default: chat, code, math, summarise.",
        show_default=False,
    ),
]
KvTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Tokens in each worker's KV pool. Default: what a known GPU has beside a known model's weights, "
        "else 400,000.",
        show_default=False,
    ),
]
Duration = Annotated[float | None, typer.Option(help="Only what arrives within this many seconds.", show_default=False)]


def simulate(
    trace: Annotated[Path, typer.Option(help="CSV: arrival_s,prompt_tokens,output_tokens[,tier].")],
    json_path: Annotated[Path, typer.Option("--json", help="Write the rows here.")],
    tiers: TiersPath = None,
    profile: Annotated[
        str,
        typer.Option(help="GPU/MODEL/TP, or a file of `hyperflexis profile`; several with +, for workers in turn."),
    ] = "h200/llama-3.1-8b/tp1",
    workers: Annotated[int, typer.Option(min=1, help="How many workers.")] = 4,
    kv_tokens: KvTokens = None,
    policy: Annotated[
        str, typer.Option(help="One or several with commas; `list` names them.", callback=_list_policies, is_eager=True)
    ] = "hyperflexis",
    load: Annotated[str, typer.Option(help="Times the trace's own rate; several with commas.")] = "1",
    seed: Annotated[int, typer.Option(min=0, help="Of step noise, drawn tiers and jitter.")] = 0,
    duration: Duration = None,
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
        served = {factor: _within(given.at_rate(given.rate * factor), duration) for factor in loads}
        page_path = _page_path(json_path) if plot else None
    except ValueError as error:
        fail(str(error), USAGE)
    experiments = [
        Experiment(trace.stem, workload, promises, profile, workers, name, factor, seed, kv_tokens=kv_tokens)
        for factor, workload in served.items()
        for name in policies
    ]
    about = {
        "Trace": f"{trace}, {len(given.arrival_s):,} requests, {given.rate:.3g}/s at load 1"
        + (f"; what arrives within {duration:g} s" if duration is not None else "")
        + ("; arrivals spread" if jitter else ""),
        **_about(experiments[0]),
    }
    _run_and_tell(experiments, about, json_path, page_path)


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


def _about(experiment: Experiment) -> dict[str, str]:
    """What all of them have in common."""
    kv_tokens = experiment.kv_tokens
    return {
        **{f"Tier {name}": promise.described() for name, promise in experiment.promises.items()},
        "Workers": f"{experiment.workers} of {experiment.profile}"
        + (f", {kv_tokens:,} tokens of KV each" if kv_tokens else ""),
        "Seed": str(experiment.seed),
        "Step noise": f"{experiment.step_noise:.0%}",
        "Ends": f"{experiment.drain_s:g} s after the last arrival; who is not done by then has not attained",
    }


def _run_and_tell(
    experiments: Sequence[Experiment], about: Mapping[str, str], json_path: Path, page_path: Path | None
) -> None:
    for path in filter(None, (json_path, page_path)):
        _check_writable(path)
    rows: list[dict[str, Any]] = []
    interrupted = _run(experiments, rows, lambda: _write_json(rows, about, json_path))
    if rows:
        out.print(outcome_table(rows))
        if page_path is not None:
            _write_page(rows, about, page_path, f"Simulation of {experiments[0].trace}")
        out.print(f"written: {', '.join(map(str, filter(None, (json_path, page_path))))}", soft_wrap=True)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _within(workload: Workload, duration: float | None) -> Workload:
    """Raises ValueError."""
    if duration is None:
        return workload
    if not 0 < duration < float("inf"):
        raise ValueError("--duration takes seconds above 0")
    found = workload.within(duration)
    if len(found.arrival_s) < 2 or not found.arrival_s[-1] > found.arrival_s[0]:
        raise ValueError(f"within {duration:g} s at most one request arrives; a longer --duration has more")
    return found


def _page_path(json_path: Path) -> Path:
    """Raises ValueError."""
    found = json_path.with_suffix(".html")
    if found == json_path:
        raise ValueError("--json is where --plot would put its page; call it .json")
    return found


def _run(experiments: Iterable[Experiment], rows: list[dict[str, Any]], keep: Callable[[], None]) -> bool:
    """Adds each simulation's rows, which are kept at once; True where Ctrl-C came before the last was over."""
    try:
        with SimulationProgress(out) as progress:
            for each in experiments:
                tick = progress.begin(f"{each.policy}, load {each.load:g}", each.until_s)
                rows += each.run(tick)
                progress.end()
                keep()
    except KeyboardInterrupt:
        return True
    except ValueError as error:
        fail(str(error), USAGE)
    return False


def _check_writable(path: Path) -> None:
    """Better now than after minutes; what is there stays until there is something to put in its place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        fail(f"cannot write {error.filename or path}: {error.strerror}", USAGE)


def _write_json(rows: Sequence[Mapping[str, Any]], about: Mapping[str, str], path: Path) -> None:
    try:
        path.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {error.filename or path}: {error.strerror}", USAGE)


def _write_page(rows: Sequence[Mapping[str, Any]], about: Mapping[str, str], path: Path, title: str) -> None:
    # matplotlib takes a second to import.
    from hyperflexis_cli.load_report import render_load_report

    try:
        path.write_text(render_load_report(rows, about, title), encoding="utf-8")
    except OSError as error:
        fail(f"cannot write {error.filename or path}: {error.strerror}", USAGE)
