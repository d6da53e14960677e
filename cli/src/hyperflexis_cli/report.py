"""A replay as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from hyperflexis_cli.display import notes
from hyperflexis_cli.figures import count, milliseconds, share
from hyperflexis_cli.plots import attainment_over_time, load_over_time, tpot_distributions, ttft_distributions
from hyperflexis_cli.record import Record

PLOTS = (
    ("Attainment over time", attainment_over_time),
    ("Time to first token", ttft_distributions),
    ("Time per output token", tpot_distributions),
    ("Load", load_over_time),
)
COLUMNS = ("tier", "requests", "attainment", "TTFT p50", "p99", "objective", "TPOT p50", "p99", "objective", "tokens/s")


def render_report(records: Sequence[Record], summary: Mapping[str, Any], about: Mapping[str, str], title: str) -> str:
    """The page. `about` = how it was measured, in the order given; `summary` as summarise() makes it."""
    return page(
        title,
        f"{count(summary['requests'])} requests in {summary['wall_s']:.1f} s",
        _figures(summary),
        ("Per tier", table_of(COLUMNS, _rows(summary))),
        plots_of(records),
        about,
        notes(dict(summary)),
    )


def page(
    title: str,
    subtitle: str,
    figures: Sequence[str],
    table: tuple[str, str],
    plots: str,
    about: Mapping[str, str],
    notes: Sequence[str],
) -> str:
    """`figures`, the table (with its heading before it) and `plots` are HTML already, the rest is text."""
    template = Template(files("hyperflexis_cli").joinpath("report.html").read_text(encoding="utf-8"))
    heading, rows = table
    return template.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        figures="".join(figures),
        table_heading=escape(heading),
        table=rows,
        plots=plots,
        about="".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in about.items()),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
    )


def plots_of(records: Sequence[Record], prefix: str = "") -> str:
    """One section a plot; none without records."""
    drawn = [(prefix + heading, draw(records)) for heading, draw in PLOTS] if records else []
    return "".join(f"<section><h2>{escape(heading)}</h2>{svg}</section>\n" for heading, svg in drawn)


def figure(value: str, label: str, kind: str = "") -> str:
    """A number that comes first."""
    return f'<div class="figure {kind}"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figures(summary: Mapping[str, Any]) -> list[str]:
    """The numbers that come first."""
    clean = "good" if summary["lost_tokens"] + summary["repeated_tokens"] + summary["failed"] == 0 else "bad"
    return [
        figure(share(summary["attainment"]), "attained their objectives"),
        figure(f"{summary['lost_tokens']} / {summary['repeated_tokens']}", "tokens lost / repeated", clean),
        figure(f"{summary['refused']} / {summary['failed']}", "refused / failed", "bad" if summary["failed"] else ""),
        figure(count(summary["tokens_per_s"]), "output tokens/s"),
        figure(count(summary["prompt_tokens"] + summary["output_tokens"]), "tokens processed"),
    ]


def _rows(summary: Mapping[str, Any]) -> list[list[str]]:
    return [
        [
            tier,
            count(sums["requests"]),
            share(sums["attainment"]),
            milliseconds(sums["ttft_p50_ms"]),
            milliseconds(sums["ttft_p99_ms"]),
            milliseconds(sums["slo_ttft_ms"]),
            milliseconds(sums["tpot_p50_ms"]),
            milliseconds(sums["tpot_p99_ms"]),
            milliseconds(sums["slo_tpot_ms"]),
            count(sums["tokens_per_s"]),
        ]
        for tier, sums in summary["tiers"].items()
    ]
