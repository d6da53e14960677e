"""The report's plots, as SVG that follows the page's colours (light and dark).

Text and axes are drawn in marker colours that are then replaced by CSS variables: matplotlib knows none.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import NullFormatter

from hyperflexis_cli.figures import milliseconds
from hyperflexis_cli.record import Record
from hyperflexis_cli.summary import by_tier

INK, GRID = "#0a0b0c", "#0d0e0f"
VARIABLES = {INK: "var(--ink)", GRID: "var(--grid)"}
TIER_COLOURS = ("#3b82d6", "#e07b39", "#2f9e6e", "#b65fcf", "#c2a21f", "#d1495b")
"""Readable on white and on near-black."""

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}
WIDTH = 8.6
"""Inches; the page scales it."""

Panel = tuple[str, str, list[float], float | None]
"""Tier, colour, values, objective."""


def colours(tiers: Sequence[str]) -> dict[str, str]:
    return {tier: TIER_COLOURS[index % len(TIER_COLOURS)] for index, tier in enumerate(tiers)}


def attainment_over_time(records: Sequence[Record]) -> str:
    """Share of the requests that arrived within each window and attained."""

    def draw(axes: Axes) -> None:
        end_s = max(record.planned.at_s for record in records)
        window_s = _round_up(end_s / 30)
        palette = colours(list(by_tier(records)))
        for tier, members in by_tier(records).items():
            windows: dict[int, list[bool]] = {}
            for record in members:
                windows.setdefault(int(record.planned.at_s / window_s), []).append(record.attained)
            middles = [(window + 0.5) * window_s for window in sorted(windows)]
            shares = [100 * sum(windows[window]) / len(windows[window]) for window in sorted(windows)]
            axes.plot(middles, shares, color=palette[tier], label=tier, marker="o", markersize=3.5, linewidth=1.5)
        axes.set_ylim(-3, 103)
        axes.set_xlim(left=0)
        axes.set_ylabel("attained, %")
        axes.set_xlabel(f"arrival, s (windows of {window_s:.3g} s)")
        _legend_above(axes)

    return _single(draw, "attainment")


def load_over_time(records: Sequence[Record]) -> str:
    """Arrivals a second as bars, open requests as a line."""

    def draw(axes: Axes) -> None:
        end_s = max(max(record.ended_s or 0.0, record.planned.at_s) for record in records)
        width_s = _round_up(end_s / 60)
        counts: dict[int, int] = {}
        for record in records:
            window = int(record.planned.at_s / width_s)
            counts[window] = counts.get(window, 0) + 1
        starts = [window * width_s for window in sorted(counts)]
        rates = [counts[window] / width_s for window in sorted(counts)]
        axes.bar(
            starts, rates, width=width_s * 0.92, align="edge", color=TIER_COLOURS[0], alpha=0.45, label="arrivals/s"
        )
        axes.set_ylabel("arrivals/s")
        axes.set_xlabel("time, s")
        axes.set_xlim(0, end_s)
        running = axes.twinx()
        running.grid(False)
        steps = sorted([(r.sent_s, 1) for r in records] + [(r.ended_s, -1) for r in records if r.ended_s is not None])
        level, times, levels = 0, [0.0], [0]
        for at_s, change in steps:
            level += change
            times.append(at_s)
            levels.append(level)
        running.step(times, levels, where="post", color=TIER_COLOURS[1], linewidth=1.2, label="open requests")
        running.set_ylim(bottom=0)
        running.set_ylabel("open requests")
        handles = [*axes.get_legend_handles_labels()[0], *running.get_legend_handles_labels()[0]]
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)

    return _single(draw, "load")


def ttft_distributions(records: Sequence[Record]) -> str:
    """One panel per tier."""
    return _distributions(records, lambda record: record.ttft_ms, "slo_ttft", "TTFT, ms")


def tpot_distributions(records: Sequence[Record]) -> str:
    """One panel per tier."""
    return _distributions(records, lambda record: record.tpot_ms, "slo_tpot", "TPOT, ms")


def _distributions(
    records: Sequence[Record], value: Callable[[Record], float | None], objective: str, label: str
) -> str:
    tiers = by_tier(records)
    palette = colours(list(tiers))
    panels: list[Panel] = []
    for tier, members in tiers.items():
        values = [found for record in members if (found := value(record)) is not None]
        slo = next((record.slo for record in members if record.slo is not None), None)
        limit = None if slo is None else (slo.ttft_us if objective == "slo_ttft" else slo.tpot_us) / 1e3
        panels.append((tier, palette[tier], values, limit))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": objective}):
        figure = Figure(figsize=(WIDTH, 2.8), layout=ConstrainedLayoutEngine(wspace=0.06))
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for each, panel in zip(axes, panels, strict=True):
            _draw_distribution(each, panel, label)
        axes[0].set_ylabel("share of requests, %")
        return svg_element(figure)


def _draw_distribution(axes: Axes, panel: Panel, label: str) -> None:
    """The cumulative distribution, with the objective as a dashed line."""
    tier, colour, values, limit = panel
    axes.set_title(tier, loc="left")
    axes.set_xlabel(label)
    axes.set_ylim(0, 103)
    if values:
        ordered = sorted(values)
        axes.margins(x=0.04)
        heights = [100 * (index + 1) / len(ordered) for index in range(len(ordered))]
        axes.step([ordered[0], *ordered], [0.0, *heights], where="post", color=colour, linewidth=1.8)
    else:
        axes.text(0.5, 0.5, "no measurement", transform=axes.transAxes, ha="center", va="center")
    positive = [v for v in [*values, limit or 0.0] if v > 0]
    if positive and max(positive) / min(positive) > 20:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:g}")
    elif positive:
        axes.set_xlim(0, 1.06 * max(positive))
    if limit:
        axes.axvline(limit, color=INK, linestyle=(0, (4, 3)), linewidth=1.1)
        within = f"\n{100 * sum(v <= limit for v in values) / len(values):.0f} % within" if values else ""
        # On the side of the line where there is room.
        right = axes.transAxes.inverted().transform(axes.transData.transform((limit, 0.0)))[0] < 0.5
        axes.annotate(
            f"objective\n{milliseconds(limit)}{within}",
            (limit, 4),
            xytext=(5 if right else -5, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            fontsize=9,
        )


def _single(draw: Callable[[Axes], None], name: str) -> str:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        draw(figure.subplots())
        return svg_element(figure)


def _round_up(seconds: float) -> float:
    """The next of 0.5, 1, 2, 5, 10, 20, 50 …"""
    steps = [0.5, *(digit * 10.0**power for power in range(6) for digit in (1, 2, 5))]
    return next((step for step in steps if step >= seconds), steps[-1])


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6)


def svg_element(figure: Figure) -> str:
    """The figure as an element to embed: no XML prologue, colours as variables, the page's width."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" ', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for marker, variable in VARIABLES.items():
        svg = svg.replace(marker, variable)
    return svg
