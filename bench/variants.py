"""`python bench/variants.py`: what each mechanism is worth, and what is lost where the world is not as believed.

Ablations change one rule each (hyperflexis:<rule>=<value>); disturbances change the world: noisier steps, older
reports, a worker that is slower than anybody knows, promises scaled, GPUs of two kinds. Writes
build/bench/variants.json and prints a table of attainment for each. Load 1 is that of bench-slo.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import slo_kept
from slo_environments import PROFILES, Environment

from hyperflexis_cli.load_plots import OURS
from hyperflexis_sim.delays import Delays
from hyperflexis_sim.interval import half_width_95
from hyperflexis_sim.policies import ADMISSION_TOKENS

KEPT = (
    "table", "variant", "environment", "load", "seed",
    "attainment", "token_deadline_attainment", "ttft_p99_ms", "e2e_p99_ms", "gap_p99_ms",
)  # fmt: skip
WORTH_TELLING = 0.25
"""Points."""
QOSERVE, SCORPIO = "jsq+qoserve", "jsq+scorpio"


@dataclass(frozen=True, slots=True)
class Variant:
    """A row: one policy in one world."""

    name: str
    policy: str = OURS
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the Experiment."""
    scale: float = 1.0
    """Of every promise."""


@dataclass(frozen=True, slots=True)
class Column:
    environment: Environment
    rate: float
    """At load 1 (bench-slo's capacity search)."""
    load: float


MIX = Environment("mix_poisson", "h200", 4)
COLUMNS = [
    Column(environment, rate, load)
    for environment, rate in (
        (MIX, 90.7),
        (Environment("mix_poisson", "a100", 4), 26.8),
        (Environment("azure_2023_code", "h200", 4), 51.7),
        (Environment("azure_2023_conv", "h200", 4), 100.8),
    )
    for load in (1.0, 1.5, 2.0)
]

SHORT = {
    "mix_poisson/h200/4": "mix H200",
    "mix_poisson/a100/4": "mix A100",
    "azure_2023_code/h200/4": "code",
    "azure_2023_conv/h200/4": "conversation",
}
"""What tables call them, at the first of their columns."""

ABLATIONS = [
    Variant("as it is"),
    Variant("neither hopeless nor victims given up", OURS + ":give_up=false:size_weight=false"),
    Variant("hopeless not given up on their own", OURS + ":give_up=false"),
    Variant("no Moore-Hodgson victims", OURS + ":size_weight=false"),
    Variant("steps by tokens alone (8,192)", OURS + ":budget=false"),
    Variant("no margin from the slack", OURS + ":slack_share=1:margin_us=0"),
    Variant("step fixed at 0.9 of the tightest TPOT", OURS + ":floor_share=0.9:longest_share=0.9"),
    Variant("steps long though nobody needs it", OURS + ":unhurried_us=1e9"),
    Variant("steps up to 200 ms", OURS + ":longest_share=1e6"),
    Variant("no floor under a step", OURS + ":floor_share=0"),
    Variant("steps longer than first tokens allow", OURS + ":first_in_time=false"),
    Variant("by deadline alone", OURS + ":work_order=0"),
    Variant("prefill share not measured", OURS + ":share_memory_us=1e15"),
    Variant("pace not measured", OURS + ":pace_rate=0"),
    Variant("told at the deadline, not after a tenth", OURS + ":patience=1"),
    Variant("round robin in front", "round_robin+" + OURS),
    Variant("the whole queue counts as ahead", "whole_queue+" + OURS),
    Variant("what decodes do to others does not count", "harmless+" + OURS),
    Variant("workers divided among the TPOTs", "tiers_apart+" + OURS),
    *(
        Variant(f"engines fill steps of {tokens:,} themselves", f"{OURS}+admission{tokens}")
        for tokens in ADMISSION_TOKENS
    ),
]

DISTURBANCES = [
    Variant("as it is"),
    Variant("15 % step noise", changes={"step_noise": 0.15}),
    Variant("15 % step noise, no floor", OURS + ":floor_share=0", {"step_noise": 0.15}),
    Variant("reports 100 ms late", changes={"delays": Delays(report_us=100_000.0)}),
    Variant("reports 500 ms late", changes={"delays": Delays(report_us=500_000.0)}),
    Variant("one worker 2x slower, known", changes={"slow_worker": 2.0, "slow_worker_known": True}),
    Variant("one worker 2x slower", changes={"slow_worker": 2.0}),
    Variant("one worker 2x slower, pace not measured", OURS + ":pace_rate=0", {"slow_worker": 2.0}),
    Variant("one worker 2x slower, round robin in front", "round_robin+" + OURS, {"slow_worker": 2.0}),
    Variant("one worker 2x slower, whole queue ahead", "whole_queue+" + OURS, {"slow_worker": 2.0}),
    Variant("one worker 2x slower, QoServe", QOSERVE, {"slow_worker": 2.0}),
    Variant("one worker 3x slower", changes={"slow_worker": 3.0}),
    Variant("one worker 3x slower, lost promises count", OURS + ":reachable=false", {"slow_worker": 3.0}),
    *(
        Variant(f"promises x{scale:g}, {label}", policy, scale=scale)
        for scale in (0.5, 2.0, 3.0)
        for label, policy in (("ours", OURS), ("QoServe", QOSERVE), ("SCORPIO", SCORPIO))
    ),
    *(
        Variant(f"two H200 and two A100, {label}", policy, {"profile": "+".join(PROFILES.values())})
        for label, policy in (("ours", OURS), ("round robin in front", "round_robin+" + OURS), ("QoServe", QOSERVE))
    ),
]
TABLES = {"ablations": ABLATIONS, "disturbances": DISTURBANCES}


@dataclass(frozen=True, slots=True)
class Job:
    table: str
    variant: int
    column: int
    seed: int

    def run(self, directory: Path) -> dict[str, Any]:
        variant, column = TABLES[self.table][self.variant], COLUMNS[self.column]
        rate = column.rate * column.load
        experiment = column.environment.experiment(directory, variant.policy, rate, column.load, self.seed)
        promises = {name: promise.scaled(variant.scale) for name, promise in experiment.promises.items()}
        row = replace(experiment, promises=promises, **variant.changes).run()[-1]
        return {"table": self.table, "variant": variant.name, "environment": column.environment.name} | row


def run(jobs: Sequence[Job], directory: Path, processes: int) -> list[dict[str, Any]]:
    rows, began = [], time.monotonic()
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for count, row in enumerate(pool.map(Job.run, jobs, [directory] * len(jobs), chunksize=4), start=1):
            rows.append(row)
            if count % 20 == 0:
                left_s = (time.monotonic() - began) * (len(jobs) - count) / count
                print(f"{count}/{len(jobs)}, {left_s / 60:.1f} min left", flush=True)
    return rows


def table(rows: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Of what was run: attainment as it is, and under it the points that each change wins or loses; · = less than a
    quarter point, in brackets = less than the half width of its 95 % interval."""
    points = [(column.environment.name, column.load) for column in COLUMNS]
    found: dict[tuple[str, str, float], list[float]] = {}
    for row in rows:
        if row["table"] == name:
            found.setdefault((row["variant"], row["environment"], row["load"]), []).append(row["attainment"])
    names = dict(SHORT)
    heads = [f"{names.pop(where, '')} {load:g}x".strip() for where, load in points]
    lines = ["| change | " + " | ".join(heads) + " |", "|---" * (len(points) + 1) + "|"]
    for variant in dict.fromkeys(variant for variant, *_ in found):
        pairs = [(found[variant, *point], found["as it is", *point]) for point in points]
        cells = [f"{fmean(values):.3f}".removeprefix("0") for values, _ in pairs]
        if variant != "as it is":
            cells = [_change(values, base) for values, base in pairs]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return lines


def _change(values: Sequence[float], base: Sequence[float]) -> str:
    """In points; seed by seed."""
    changes = [100 * (value - other) for value, other in zip(values, base, strict=True)]
    change = fmean(changes)
    if abs(change) < WORTH_TELLING:
        return "·"
    return f"{change:+.1f}" if abs(change) > half_width_95(changes) else f"({change:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    about = "variants with one of these in their name (commas between), beside `as it is`"
    parser.add_argument("--only", default="", metavar="WORDS", help=about)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", choices=sorted(TABLES), help="default: both")
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--out", type=Path, default=Path("build/bench/variants.json"))
    arguments = parser.parse_args()
    if not arguments.traces.is_dir():
        parser.error(f"--traces: {arguments.traces} is no directory")
    if arguments.seeds < 1 or arguments.processes < 1:
        parser.error("--seeds and --processes must be at least 1")
    names = [arguments.table] if arguments.table else list(TABLES)
    words = [word.strip() for word in arguments.only.split(",") if word.strip()]
    known = [variant.name for name in names for variant in TABLES[name]]
    if unknown := [word for word in words if not any(word in variant for variant in known)]:
        parser.error(f"--only: no variant has {unknown[0]!r} in its name; known: {', '.join(known)}")
    jobs = [
        Job(name, variant, column, seed)
        for name in names
        for seed in range(arguments.seeds)
        for column in range(len(COLUMNS))
        for variant, its in enumerate(TABLES[name])
        if variant == 0 or not words or any(word in its.name for word in words)
    ]
    print(f"{len(jobs)} simulations, {arguments.processes} at a time", flush=True)
    rows = run(jobs, arguments.traces, arguments.processes)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    kept = [{column: row[column] for column in KEPT} for row in rows]
    slo_kept.write(arguments.out, {"seeds": arguments.seeds, "rows": kept})
    for name in names:
        print(f"\n{name}: attainment as it is, then points won or lost\n")
        print("\n".join(table(rows, name)))
    print(f"\nwritten: {arguments.out}")


if __name__ == "__main__":
    main()
