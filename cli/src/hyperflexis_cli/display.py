"""A replay on the terminal: while it runs, and its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hyperflexis_cli.figures import count, milliseconds, share
from hyperflexis_cli.replay import Progress
from hyperflexis_cli.summary import by_tier, side_by_side, summarise_tier
from hyperflexis_common.server import cancel_all

REFRESH_S = 0.5
PLAIN_REFRESH_S = 10.0
"""Without a terminal: a line as often as this."""


@contextlib.asynccontextmanager
async def live_progress(console: Console, progress: Progress) -> AsyncIterator[None]:
    """Shows the progress for as long as the block runs."""
    if console.is_terminal:
        with Live(progress_table(progress), console=console, auto_refresh=False, transient=True) as live:
            task = asyncio.create_task(_refresh(live, progress))
            try:
                yield
            finally:
                await cancel_all(task)
    else:
        task = asyncio.create_task(_print_lines(console, progress))
        try:
            yield
        finally:
            await cancel_all(task)


async def _refresh(live: Live, progress: Progress) -> None:
    while True:
        await asyncio.sleep(REFRESH_S)
        live.update(progress_table(progress), refresh=True)


async def _print_lines(console: Console, progress: Progress) -> None:
    while True:
        await asyncio.sleep(PLAIN_REFRESH_S)
        attained = sum(record.attained for record in progress.records if record.ended_s is not None)
        done = progress.done
        console.print(
            f"{progress.elapsed_s:6.0f} s  {done}/{progress.planned} done, {progress.running} running, "
            f"{share(attained / done if done else None)} attained",
            soft_wrap=True,
        )


def progress_table(progress: Progress) -> Table:
    """One row per tier, and the whole."""
    title = f"{progress.elapsed_s:.0f} s, {progress.done} of {progress.planned} done, {progress.running} running"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("tier")
    for column in ("sent", "running", "done", "attained", "attainment", "TTFT p50", "TPOT p50"):
        table.add_column(column, justify="right")
    for tier, records in by_tier(progress.records).items():
        ended = [record for record in records if record.ended_s is not None]
        sums = summarise_tier(ended, progress.elapsed_s)
        table.add_row(
            escape(tier),
            count(len(records)),
            count(len(records) - len(ended)),
            count(len(ended)),
            count(sums["attained"]),
            share(sums["attainment"]),
            milliseconds(sums["ttft_p50_ms"]),
            milliseconds(sums["tpot_p50_ms"]),
        )
    return table


def summary_table(summary: dict[str, Any]) -> Table:
    """The end of a replay, one row per tier; narrow enough for 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("tier", no_wrap=True)
    columns = ("attained", "", "TTFT ms\np50 / p99", "TPOT ms\np50 / p99", "tokens/s", "refused", "failed")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for tier, sums in summary["tiers"].items():
        table.add_row(
            escape(tier),
            f"{count(sums['attained'])}/{count(sums['requests'])}",
            share(sums["attainment"]),
            _pair(sums["ttft_p50_ms"], sums["ttft_p99_ms"]),
            _pair(sums["tpot_p50_ms"], sums["tpot_p99_ms"]),
            count(sums["tokens_per_s"]),
            count(sums["refused"]),
            count(sums["failed"]),
        )
    return table


def comparison_table(summaries: Mapping[str, Mapping[str, Any]]) -> Table:
    """The ends of several replays of the same requests: for each tier a row per policy."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("tier", "policy"):
        table.add_column(column, no_wrap=True)
    for column in ("attained", "", "TTFT ms\np50 / p99", "TPOT ms\np50 / p99", "refused", "downgraded"):
        table.add_column(column, justify="right", no_wrap=True)
    before = ""
    for tier, policy, sums in side_by_side(summaries):
        if before not in ("", tier):
            table.add_row()
        table.add_row(
            escape(tier) if tier != before else "",
            escape(policy),
            f"{count(sums['attained'])}/{count(sums['requests'])}",
            share(sums["attainment"]),
            _pair(sums["ttft_p50_ms"], sums["ttft_p99_ms"]),
            _pair(sums["tpot_p50_ms"], sums["tpot_p99_ms"]),
            count(sums["refused"]),
            count(sums["downgraded"]),
        )
        before = tier
    return table


def _pair(median: float | None, tail: float | None) -> str:
    def plain(value: float | None) -> str:
        return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"

    return f"{plain(median)} / {plain(tail)}"


def print_summary(console: Console, summary: dict[str, Any]) -> None:
    """The table and what else there is to know, in sentences."""
    console.print(summary_table(summary))
    print_totals(console, summary)
    for note in notes(summary):
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def print_totals(console: Console, summary: Mapping[str, Any], policy: str = "") -> None:
    """The whole in one line."""
    prefix = f"{policy}: " if policy else ""
    console.print(
        f"{prefix}{summary['requests']} requests in {summary['wall_s']:.1f} s: "
        f"{share(summary['attainment'])} attained, "
        f"{summary['refused']} refused, {summary['failed']} failed; "
        f"{summary['lost_tokens']} tokens lost, {summary['repeated_tokens']} repeated; "
        f"{count(summary['tokens_per_s'])} output tokens/s",
        soft_wrap=True,
    )


def notes(summary: dict[str, Any]) -> list[str]:
    """What qualifies the numbers."""
    found = [
        f"Verdicts are the client's own; the router's differ for {summary['verdicts_that_differ']} of "
        f"{summary['requests']} (it counts {summary['router_attained']} attained).",
        f"Sent late: p99 {milliseconds(summary['late_p99_ms'])}, at most {milliseconds(summary['late_max_ms'])}.",
    ]
    if summary["clipped"]:
        found.append(f"Clipped to the model's context: {summary['clipped']} of {summary['requests']} requests.")
    if summary["reconnections"]:
        found.append(f"Streams lost and taken up again: {summary['reconnections']}.")
    return [*found, *(f"Failed: {error}" for error in summary["errors"])]
