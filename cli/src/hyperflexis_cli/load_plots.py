"""Attainment over load, as SVG for a page: a line per policy, or per tier of one policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hyperflexis_cli.plots import STYLE, TIER_COLOURS, WIDTH, svg_element
from hyperflexis_sim.interval import half_width_95

OURS = "hyperflexis"
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
"""One after the other, as colours come round again."""
Rows = Sequence[Mapping[str, Any]]


def policies_over_load(rows: Rows) -> str:
    """Of all tiers together; ours in front."""
    names = sorted(dict.fromkeys(row["policy"] for row in rows), key=lambda name: name != OURS)
    lines = {name: [row for row in rows if row["policy"] == name and row["tier"] == "all"] for name in names}
    return _plot(lines, "policies")


def tiers_over_load(rows: Rows, policy: str) -> str:
    """Each tier of one policy, and all of them."""
    own = [row for row in rows if row["policy"] == policy]
    names = sorted(dict.fromkeys(row["tier"] for row in own), key=lambda name: name != "all")
    return _plot({name: [row for row in own if row["tier"] == name] for name in names}, "tiers")


def _plot(lines: Mapping[str, Rows], name: str) -> str:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, max(3.4, 0.9 + 0.22 * len(lines))), layout="constrained")
        axes = figure.subplots()
        for index, (label, rows) in enumerate(lines.items()):
            _draw(axes, rows, label, index)
        axes.set_ylim(-3, 103)
        axes.set_xlim(left=0)
        axes.set_xlabel("load")
        axes.set_ylabel("attained, %")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return svg_element(figure)


def _draw(axes: Axes, rows: Rows, label: str, index: int) -> None:
    """Means over the seeds, with their 95 % interval as a band where there are several."""
    seeds: dict[float, list[float]] = {}
    for row in rows:
        seeds.setdefault(row["load"], []).append(100 * row["attainment"])
    loads = sorted(seeds)
    means = [fmean(seeds[load]) for load in loads]
    widths = [half_width_95(seeds[load]) for load in loads]
    colour, dash = TIER_COLOURS[index % len(TIER_COLOURS)], DASHES[index // len(TIER_COLOURS) % len(DASHES)]
    first = index == 0
    axes.plot(
        loads,
        means,
        color=colour,
        linestyle=dash,
        label=label,
        marker="o",
        markersize=4.5 if first else 3,
        linewidth=2.6 if first else 1.3,
        zorder=3 if first else 2,
    )
    if any(widths):
        low = [mean - width for mean, width in zip(means, widths, strict=True)]
        high = [mean + width for mean, width in zip(means, widths, strict=True)]
        axes.fill_between(loads, low, high, color=colour, alpha=0.15, linewidth=0)
