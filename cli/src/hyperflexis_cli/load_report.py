"""Simulations over several loads as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from statistics import fmean
from string import Template
from typing import Any

from hyperflexis_cli.figures import milliseconds, share
from hyperflexis_cli.load_plots import OURS, policies_over_load, tiers_over_load

Rows = Sequence[Mapping[str, Any]]
Environment = tuple[Any, Any, Any]
"""Trace, profile, workers."""
NOTES = (
    "Attained: first token within TTFT and mean time per further token within TPOT; refused or unfinished is missed.",
    "Means over the seeds; the bands are 95 % intervals of the mean, and missing where there was one seed.",
)


def render_load_report(rows: Rows, about: Mapping[str, str], title: str, notes: Sequence[str] = NOTES) -> str:
    """The page: per environment all policies, then each tier of ours (or of the only policy)."""
    environments: dict[Environment, list[Mapping[str, Any]]] = {}
    for row in rows:
        environments.setdefault((row["trace"], row["profile"], row["workers"]), []).append(row)
    sections = "".join(_sections(environment, own) for environment, own in environments.items())
    page = Template(files("hyperflexis_cli").joinpath("report.html").read_text(encoding="utf-8"))
    return page.substitute(
        title=escape(title),
        subtitle=escape(_counted(len({row["policy"] for row in rows}), "policy", "policies"))
        + escape(", " + _counted(len(environments), "environment", "environments")),
        figures="",
        table_heading="Attainment by load",
        table=_table(environments),
        plots=sections,
        about="".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in about.items()),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
    )


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _sections(environment: Environment, rows: Rows) -> str:
    trace, profile, workers = environment
    name = escape(f"{trace}, {workers} x {profile}")
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    single = OURS if OURS in policies else policies[0] if len(policies) == 1 else None
    parts = [f"<section><h2>{name}</h2>{policies_over_load(rows)}</section>\n"]
    if single is not None:
        parts.append(f"<section><h2>{name}: tiers of {escape(single)}</h2>{tiers_over_load(rows, single)}</section>\n")
    return "".join(parts)


def _table(environments: Mapping[Environment, Rows]) -> str:
    """A line per environment and policy, a column per load; then latencies at the load next to 1."""
    loads = sorted({row["load"] for rows in environments.values() for row in rows})
    middle = min(loads, key=lambda load: abs(load - 1)) if loads else 1.0
    columns = ["environment, policy", *(f"{load:g}" for load in loads)]
    columns += [f"{what} p99 at {middle:g}" for what in ("TTFT", "e2e", "gap")]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = []
    for (trace, profile, workers), rows in environments.items():
        for policy in dict.fromkeys(row["policy"] for row in rows):
            own = [row for row in rows if row["policy"] == policy and row["tier"] == "all"]
            at_middle = [row for row in own if row["load"] == middle]
            cells = [f"{trace}, {workers} x {profile.partition('/')[0]}: {policy}"]
            cells += [share(_mean([row for row in own if row["load"] == load], "attainment")) for load in loads]
            cells += [milliseconds(_mean(at_middle, key)) for key in ("ttft_p99_ms", "e2e_p99_ms", "gap_p99_ms")]
            lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _mean(rows: Rows, key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return fmean(values) if values else None
