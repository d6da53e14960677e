"""The fidelity bench on the terminal and as a page: live / simulated, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from hyperflexis_cli.figures import share

COLUMNS = ("attained", "refused", "downgraded", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99", "e2e p50", "e2e p99")
NOTES = (
    "Each cell is live / simulated, times in milliseconds, of requests that finished. An exclamation mark: attainment "
    "more than 3 points apart, or the simulated p99 outside the bootstrap 95 % interval of the live one.",
    "Simulated: five seeds of step noise over the arrivals of the live run as they were sent; counts are means.",
)


def print_point(console: Console, point: Mapping[str, Any]) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("tier", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in point["rows"]:
        table.add_row(row["tier"], *cells(row))
    console.print(table)
    for stage in point["stages"]:
        console.print(f"  told {stage['told']}: {share(stage['attainment'])} attained", style="dim", highlight=False)


def print_verdict(console: Console, document: Mapping[str, Any]) -> None:
    for line in verdicts(document):
        console.print(line, soft_wrap=True, highlight=False)


def verdicts(document: Mapping[str, Any]) -> Iterator[str]:
    """The targets, in sentences."""
    for engine, found in document["engines"].items():
        attainment, p99 = found["targets"]["attainment"], found["targets"]["p99"]
        yield (
            f"{engine}: attainment within 3 points in {attainment['hold']} of {attainment['of']} rows; simulated p99 "
            f"inside the interval of the live one in {p99['hold']} of {p99['of']}"
        )
    pace = document["pace"]
    slowest = min(pace["rates"], key=lambda rate: float(rate["times_real_time"]))
    yield (
        f"simulator: {slowest['times_real_time']:.0f} x real time or more for {pace['workers']} workers on one core "
        f"(target {pace['target']:.0f})"
    )


def cells(row: Mapping[str, Any]) -> list[str]:
    live, simulated = row["live"], row["simulated"]
    found = [_marked(f"{100 * live['attainment']:.1f} / {100 * simulated['attainment']:.1f}", row["attainment_holds"])]
    found += [f"{live[name]:.0f} / {simulated[name]:.0f}" for name in ("refused", "downgraded")]
    for name in ("ttft", "tpot", "e2e"):
        for level in ("p50", "p99"):
            key = f"{name}_{level}_ms"
            holds = row["p99"][name]["holds"] if level == "p99" else None
            found.append(_marked(f"{_time(live[key])} / {_time(simulated[key])}", holds))
    return found


def _marked(text: str, holds: bool | None) -> str:
    return f"{text} !" if holds is False else text


def _time(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def render(document: Mapping[str, Any]) -> str:
    points = [point for found in document["engines"].values() for point in found["points"]]
    page = Template(files("hyperflexis_cli").joinpath("report.html").read_text(encoding="utf-8"))
    about = {
        "Machine": document["machine"],
        **{
            engine: f"capacity {found['capacity_rps']:.1f} requests/s, {found['capacity_tokens_per_s']:,.0f} tokens/s; "
            f"{found['date']}, {found['command']}"
            for engine, found in document["engines"].items()
        },
    }
    return page.substitute(
        title="Fidelity of the simulator",
        subtitle=escape("; ".join(verdicts(document))),
        figures="",
        table_heading="What each measurement is worth: attained, all tiers",
        table=_stages(points),
        plots="".join(_section(point) for point in points),
        about="".join(f"<dt>{escape(key)}</dt><dd>{escape(str(value))}</dd>" for key, value in about.items()),
        notes="".join(f"<li>{escape(note)}</li>" for note in NOTES),
    )


def _stages(points: list[Mapping[str, Any]]) -> str:
    if not points:
        return ""
    told = [stage["told"] for stage in points[0]["stages"]]
    rows = []
    for point in points:
        found = [share(stage["attainment"]) for stage in point["stages"]]
        rows.append([_name(point), share(point["rows"][-1]["live"]["attainment"]), *found])
    return _table(["", "live", *told], rows)


def _section(point: Mapping[str, Any]) -> str:
    rows = [[row["tier"], *cells(row)] for row in point["rows"]]
    heading = f"{_name(point)} ({point['rate_rps']:.1f} requests/s)"
    return f'<section><h2>{escape(heading)}</h2><div class="wide">{_table(["tier", *COLUMNS], rows)}</div></section>\n'


def _name(point: Mapping[str, Any]) -> str:
    return f"{point['engine']}, {point['policy']}, load {point['load']:g}"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
