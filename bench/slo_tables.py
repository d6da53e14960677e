"""`python bench/slo_tables.py [FILE] [--plots DIR]`: the tables and plots of docs/scheduling.md, from kept results."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import slo_kept
from slo_bounds import fluid_verdicts
from slo_targets import LATENCY_LOAD, verdicts

from hyperflexis_cli.load_plots import OURS, policies_over_load
from hyperflexis_sim.interval import half_width_95

POLICIES = {
    OURS: OURS,
    "jsq+qoserve": "QoServe, slack from the first token",
    "jsq+qoserve_literal": "QoServe, literal",
    "jsq+scorpio": "SCORPIO",
    "llmd_headroom+fcfs512": "llm-d headroom",
    "polyserve+fcfs512": "PolyServe",
    "round_robin+fcfs2048": "round robin + FCFS",
}
OF_LATENCIES = (OURS, "jsq+qoserve", "jsq+scorpio", "round_robin+fcfs2048")
TIERS = ("chat", "code", "math", "summarise")
TRACES = {
    "mix_poisson": "mix, Poisson",
    "mix_gamma3": "mix, Gamma CV 3",
    "azure_2023_conv": "Azure conversation",
    "azure_2023_code": "Azure code",
    "mooncake_conversation": "Mooncake conversation",
}
_TOTALS = ("ttft_p50_ms", "ttft_p99_ms", "e2e_p50_ms", "e2e_p99_ms", "gap_p99_ms")
AS_GOOD = 0.0005
"""Attainments closer than this are equal."""
STYLE = "<style>:root{--ink:#333;--grid:#ccc}@media (prefers-color-scheme:dark){:root{--ink:#ccc;--grid:#555}}</style>"

Rows = Sequence[Mapping[str, Any]]
Environment = tuple[str, str, int]
Table = list[str]


def named(environment: Environment) -> str:
    trace, profile, workers = environment
    return f"{TRACES.get(trace, trace)}, {workers} {profile.partition('/')[0].upper()}"


def environments(rows: Rows) -> list[Environment]:
    return list(dict.fromkeys((row["trace"], row["profile"], row["workers"]) for row in rows))


def attainment_table(rows: Rows) -> Table:
    """A line per point; where one policy has several seeds, its 95 % interval."""
    lines = _head(["workload", "load", *POLICIES.values()])
    for environment in environments(rows):
        own = [row for row in rows if _of(row) == environment and row["tier"] == "all"]
        for count, load in enumerate(sorted({row["load"] for row in own})):
            found = {
                policy: [row["attainment"] for row in own if (row["policy"], row["load"]) == (policy, load)]
                for policy in POLICIES
            }
            best = max((fmean(values) for values in found.values() if values), default=0.0)
            cells = [_attained(values, best, interval=policy == OURS) for policy, values in found.items()]
            lines.append(_line([named(environment) if not count else "", f"{load:g}", *cells]))
    return lines


def target_table(found: Sequence[Mapping[str, Any]]) -> Table:
    lines = _head(["target", "", "points", "missed", "worst point"])
    for each in found:
        if each["holds"] is not None:
            word = "holds" if each["holds"] else "**missed**"
            lines.append(_line([each["target"], word, each["points"], each["missed"], each["worst"]]))
    return lines


def latency_table(rows: Rows) -> Table:
    """Milliseconds, means of the seeds; p99 TTFT of each tier too, where all have the same tiers."""
    heads = ["TTFT p50", "TTFT p99", f"of {TIERS[0]}", *TIERS[1:], "e2e p50", "e2e p99", "longest pause p99"]
    lines = _head([f"workload at load {LATENCY_LOAD:g}", "policy", *heads, "every token in time"])
    for environment in environments(rows):
        here = [row for row in rows if _of(row) == environment and row["load"] == LATENCY_LOAD]
        for count, policy in enumerate(OF_LATENCIES):
            own = [row for row in here if row["policy"] == policy]
            of_tier = [_mean(own, tier, "ttft_p99_ms") for tier in TIERS]
            total = [_mean(own, "all", column) for column in _TOTALS]
            in_time = [row["token_deadline_attainment"] for row in own if row["tier"] == "all"]
            cells = [*total[:2], *of_tier, *total[2:], _share(fmean(in_time)) if in_time else ""]
            lines.append(_line([named(environment) if not count else "", POLICIES[policy], *cells]))
    return lines


def bound_table(rows: Rows, bounds: Rows) -> Table:
    lines = _head(["workload", "load", "attained", "fluid bound", "of it", "clairvoyant bound", "of it"])
    for bound in bounds:
        own = [
            row["attainment"]
            for row in rows
            if (row["policy"], row["tier"], row["load"]) == (OURS, "all", bound["load"]) and _of(row) == _of(bound)
        ]
        if bound["load"] >= LATENCY_LOAD and own:
            attained, fluid, clairvoyant = fmean(own), bound["fluid"], bound["clairvoyant"]
            cells = [_share(attained), _share(fluid), _percent(attained / fluid), _share(clairvoyant)]
            lines.append(_line([named(_of(bound)), f"{bound['load']:g}", *cells, _percent(attained / clairvoyant)]))
    return lines


def write_plots(rows: Rows, directory: Path) -> list[Path]:
    """Attainment over load of the policies that are named, for the environments of four workers that have a plot."""
    drawn = []
    for trace, profile, workers in environments(rows):
        own = [row for row in rows if _of(row) == (trace, profile, workers) and row["policy"] in POLICIES]
        path = directory / f"attained-{trace}-{profile.partition('/')[0]}.svg"
        if workers == 4 and path.exists():
            svg = policies_over_load(own)
            path.write_text(svg.replace("<defs>", f"{STYLE}<defs>", 1) + "\n", encoding="utf-8")
            drawn.append(path)
    return drawn


def _attained(values: Sequence[float], best: float, interval: bool) -> str:
    if not values:
        return ""
    text = _share(fmean(values))
    if interval and len(values) > 1:
        text += f" ±{_share(half_width_95(values))}"
    return f"**{text}**" if fmean(values) > best - AS_GOOD else text


def _mean(rows: Rows, tier: str, column: str) -> str:
    values = [row[column] for row in rows if row["tier"] == tier and row.get(column) is not None]
    return f"{fmean(values):,.0f}" if values else ""


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _of(row: Mapping[str, Any]) -> Environment:
    return row["trace"], row["profile"], row["workers"]


def _head(names: Sequence[str]) -> Table:
    return [_line(names), "|---" * len(names) + "|"]


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=Path("bench/results/slo.json"))
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draws those that are there already anew")
    arguments = parser.parse_args()
    try:
        document = slo_kept.read(arguments.file)
    except ValueError as error:
        parser.error(str(error))
    rows, bounds = document["rows"], document["bounds"]
    targets = [*verdicts(rows), *fluid_verdicts(rows, bounds)]
    tables = (attainment_table(rows), target_table(targets), latency_table(rows), bound_table(rows, bounds))
    print("\n\n".join("\n".join(table) for table in tables))
    if arguments.plots and not write_plots(rows, arguments.plots):
        parser.error(f"--plots: {arguments.plots} has no plot to draw anew (attained-<workload>-<gpu>.svg)")


if __name__ == "__main__":
    main()
