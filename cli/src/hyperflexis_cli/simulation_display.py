"""Simulations on the terminal: while they run, and what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from hyperflexis_cli.figures import count, milliseconds, share

PLAIN_EVERY_S = 10.0
"""Without a terminal: a line as often as this, and one for each simulation that ends."""


class SimulationProgress:
    """One simulation after the other: simulated seconds, and how many of them go by in a real one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} s  {task.fields[pace]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._total_s = self._done_s = 0.0
        self._began = self._told = 0.0

    def __enter__(self) -> SimulationProgress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def begin(self, name: str, total_s: float) -> Callable[[float], None]:
        """The next simulation; what is returned takes its time in microseconds."""
        self._name, self._total_s, self._done_s = name, total_s, 0.0
        self._began = self._told = time.monotonic()
        self._task = self._bars.add_task(escape(name), total=total_s, pace="")
        return self._tick

    def end(self) -> None:
        """It is over, maybe before its last second."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        took_s = time.monotonic() - self._began
        line = f"{self._name}: {self._done_s:.0f} s simulated in {took_s:.1f} s ({self._pace()})"
        self._console.print(escape(line), soft_wrap=True)

    def _tick(self, now_us: float) -> None:
        self._done_s = now_us / 1e6
        if self._console.is_terminal:
            if self._task is not None:
                self._bars.update(self._task, completed=self._done_s, pace=self._pace())
        elif time.monotonic() - self._told >= PLAIN_EVERY_S:
            self._told = time.monotonic()
            line = f"{self._name}: {self._done_s:.0f} of {self._total_s:.0f} s ({self._pace()})"
            self._console.print(escape(line), soft_wrap=True)

    def _pace(self) -> str:
        took_s = time.monotonic() - self._began
        return f"{self._done_s / took_s:,.0f} x real time" if took_s > 0 else ""


def outcome_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line per simulation; `rows` as Experiment.run gives them, of one seed or several."""
    missed = [name for name in ("refused", "downgraded", "best_effort", "unfinished") if any(row[name] for row in rows)]
    tiers = [*dict.fromkeys(row["tier"] for row in rows if row["tier"] != "all"), "all"]
    table = Table(box=box.SIMPLE_HEAD, title="attainment, and latencies of what finished", title_justify="left")
    table.add_column("policy")
    for column in ("load", *tiers, "TTFT p99", "TPOT p99", *(name.replace("_", " ") for name in missed)):
        table.add_column(escape(column), justify="right")
    runs: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        runs.setdefault((row["policy"], row["load"], row["seed"]), {})[row["tier"]] = row
    for (policy, load, _), of_run in runs.items():
        total = of_run["all"]
        table.add_row(
            escape(policy),
            f"{load:g}",
            *(share(of_run[tier]["attainment"] if tier in of_run else None) for tier in tiers),
            milliseconds(total["ttft_p99_ms"]),
            milliseconds(total["tpot_p99_ms"]),
            *(count(total[name]) for name in missed),
        )
    return table


def policies_table(descriptions: Mapping[str, str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("policy")
    table.add_column("")
    for name, description in descriptions.items():
        table.add_row(escape(name), escape(description))
    return table
