"""What the rows decide about the targets of scheduling: each holds or misses, with its worst point.

A point is one environment at one load. Policies are compared seed by seed, on the same requests; the interval is the
95 % one of the mean difference or, for ratios, of ours over the other's mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hyperflexis_cli.load_plots import OURS
from hyperflexis_sim.interval import half_width_95

BASE = "round_robin+fcfs2048"
BEATEN = ("jsq+scorpio", "llmd_headroom+fcfs512", "polyserve+fcfs512", "jsq+qoserve_literal")
OVER_ROUND_ROBIN, WHERE_IT_ATTAINS = 4.44, 0.20
BELOW_BEST = -0.005
ADAPTIVE, BELOW_SPLIT = f"{OURS}@adaptive", -0.01
OVER_BEATEN, FROM_LOAD = 1.15, 1.5
TTFT_RATIO, E2E_RATIO, LATENCY_LOAD = 0.34, 0.7, 1.0

Seeds = Mapping[int, Mapping[str, Any]]
"""The `all` row of each seed."""


@dataclass(frozen=True, slots=True)
class Point:
    environment: str
    load: float
    policies: Mapping[str, Seeds]


@dataclass(frozen=True, slots=True)
class Margin:
    """At one point, by how much a target is kept; below 0 it is missed."""

    value: float
    half_width: float
    seeds: int
    text: str


def points_of(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    found: dict[tuple[str, float], dict[str, dict[int, Mapping[str, Any]]]] = {}
    for row in rows:
        if row["tier"] == "all":
            environment = f"{row['trace']}/{row['profile'].partition('/')[0]}/{row['workers']}"
            found.setdefault((environment, row["load"]), {}).setdefault(row["policy"], {})[row["seed"]] = row
    return [Point(environment, load, policies) for (environment, load), policies in found.items()]


def verdicts(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A target each: {target, holds, points, missed, unsure, worst}; holds is null where nothing decides it.

    missed = points whose mean is on the wrong side; unsure = points whose interval has the limit inside, or that have
    one seed only.
    """
    points = [point for point in points_of(rows) if OURS in point.policies]
    targets: list[tuple[str, Callable[[Point], list[Margin]]]] = [
        (f">= {OVER_ROUND_ROBIN} x {BASE} where that is <= {WHERE_IT_ATTAINS:.0%}", _over_round_robin),
        (f">= best baseline {BELOW_BEST:+g}", _against_best("attainment")),
        *((f">= {OVER_BEATEN} x {name} from load {FROM_LOAD:g} on", _over(name)) for name in BEATEN),
        (f"p99 TTFT of served <= {TTFT_RATIO} x {BASE} at load 1", _latency("ttft_p99_ms", TTFT_RATIO)),
        (f"p99 end to end <= {E2E_RATIO} x {BASE} at load 1", _latency("e2e_p99_ms", E2E_RATIO)),
        ("p99 TTFT <= that of the best baseline at load 1", _latency("ttft_p99_ms", 1.0, best=True)),
        ("p99 end to end <= that of the best baseline at load 1", _latency("e2e_p99_ms", 1.0, best=True)),
        ("p99 of the longest pause <= that of the best baseline at load 1", _latency("gap_p99_ms", 1.0, best=True)),
        (f"every token in time: >= best baseline {BELOW_BEST:+g}", _against_best("token_deadline_attainment")),
        (f"adaptive roles >= all in one {BELOW_SPLIT:+g}", _adaptive_over(lambda name: name == OURS)),
        (f"adaptive roles >= best static split {BELOW_SPLIT:+g}", _adaptive_over(lambda name: "@" in name)),
    ]
    return [_verdict(target, judge, points) for target, judge in targets]


def _verdict(target: str, judge: Callable[[Point], list[Margin]], points: Sequence[Point]) -> dict[str, Any]:
    judged = [(margin, point) for point in points for margin in judge(point)]
    worst = min(judged, key=lambda pair: pair[0].value, default=None)
    missed = sum(margin.value < 0 for margin, _ in judged)
    unsure = sum(margin.seeds < 2 or abs(margin.value) < margin.half_width for margin, _ in judged)
    text = None
    if worst is not None:
        margin, point = worst
        spread = f" +- {margin.half_width:.3f}" if margin.seeds > 1 else ", one seed"
        text = f"{point.environment} at {point.load:g}: {margin.text} (margin {margin.value:+.3f}{spread})"
    holds = missed == 0 if judged else None
    return {
        "target": target,
        "holds": holds,
        "points": len(judged),
        "missed": missed,
        "unsure": unsure,
        "worst": text,
    }


def best_baseline(point: Point) -> str | None:
    """Of the highest attainment, over the seeds that ours was run with too."""
    ours = point.policies[OURS]
    means = {
        name: fmean(seeds[seed]["attainment"] for seed in seeds if seed in ours)
        for name, seeds in point.policies.items()
        if not _is_ours(name) and seeds.keys() & ours.keys()
    }
    return max(means, key=means.__getitem__, default=None)


def _is_ours(name: str) -> bool:
    """Whatever its roles."""
    return name.partition("@")[0] == OURS


def _pairs(point: Point, name: str, key: str, mine: str = OURS) -> list[tuple[float, float]]:
    """Ours and the other's, of the seeds that both were run with."""
    ours, theirs = point.policies[mine], point.policies.get(name, {})
    common = [seed for seed in ours if seed in theirs]
    pairs = [(ours[seed][key], theirs[seed][key]) for seed in common]
    return [(own, other) for own, other in pairs if own is not None and other is not None]


def _against_best(key: str) -> Callable[[Point], list[Margin]]:
    """Against whichever has the highest mean among those of as many seeds as it takes: each is judged by its own."""

    def judge(point: Point) -> list[Margin]:
        margins = []
        for name in point.policies:
            pairs = _pairs(point, name, key) if not _is_ours(name) else []
            if pairs:
                differences = [own - other for own, other in pairs]
                text = f"{fmean(own for own, _ in pairs):.3f}, {name} {fmean(other for _, other in pairs):.3f}"
                margins.append(Margin(fmean(differences) - BELOW_BEST, half_width_95(differences), len(pairs), text))
        return [min(margins, key=lambda margin: margin.value)] if margins else []

    return judge


def _adaptive_over(is_other: Callable[[str], bool]) -> Callable[[Point], list[Margin]]:
    """Against the best of the others, each by the seeds that it was run with."""

    def judge(point: Point) -> list[Margin]:
        margins = []
        for name in point.policies:
            if ADAPTIVE not in point.policies or name == ADAPTIVE or not is_other(name):
                continue
            pairs = _pairs(point, name, "attainment", ADAPTIVE)
            differences = [own - other for own, other in pairs]
            text = f"{fmean(own for own, _ in pairs):.3f}, {name} {fmean(other for _, other in pairs):.3f}"
            margins.append(Margin(fmean(differences) - BELOW_SPLIT, half_width_95(differences), len(pairs), text))
        return [min(margins, key=lambda margin: margin.value)] if margins else []

    return judge


def _ratio(pairs: Sequence[tuple[float, float]], name: str, at_least: float) -> list[Margin]:
    if not pairs:
        return []
    own, other = fmean(own for own, _ in pairs), fmean(other for _, other in pairs)
    ratio = own / other if other else math.inf
    width = half_width_95([(mine - ratio * its) / other for mine, its in pairs]) if other else 0.0
    text = f"{ratio:.2f} x ({own:.3f}, {name} {other:.3f})"
    return [Margin(ratio - at_least, width, len(pairs), text)]


def _over_round_robin(point: Point) -> list[Margin]:
    pairs = _pairs(point, BASE, "attainment")
    if not pairs or fmean(other for _, other in pairs) > WHERE_IT_ATTAINS:
        return []
    return _ratio(pairs, BASE, OVER_ROUND_ROBIN)


def _over(name: str) -> Callable[[Point], list[Margin]]:
    def judge(point: Point) -> list[Margin]:
        if point.load < FROM_LOAD:
            return []
        return _ratio(_pairs(point, name, "attainment"), name, OVER_BEATEN)

    return judge


def _latency(key: str, at_most: float, best: bool = False) -> Callable[[Point], list[Margin]]:
    """The margin is `at_most` less the ratio."""

    def judge(point: Point) -> list[Margin]:
        name = best_baseline(point) if best else BASE
        if point.load != LATENCY_LOAD or name is None:
            return []
        return [
            Margin(-margin.value, margin.half_width, margin.seeds, margin.text)
            for margin in _ratio(_pairs(point, name, key), name, at_most)
        ]

    return judge
