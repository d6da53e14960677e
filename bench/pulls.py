"""`python bench/pulls.py`: what reading cached prefixes from peers could gain over placement by them, simulated.

The Mooncake conversation trace on four workers that keep prefixes: placed blindly, by what workers keep, and with an
idealised pull over links of several rates (hyperflexis_sim.prefix_pulls). Which prompts begin alike is read from a
.jsonl as Mooncake publishes it, or rebuilt from the .csv's lengths of shared beginnings. Writes build/bench/pulls.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from prefix_trace import Named, named_trace
from slo_environments import PROFILES

from hyperflexis_cli.load_plots import OURS
from hyperflexis_sim.experiment import Experiment
from hyperflexis_sim.prefix_rules import PrefixRules
from hyperflexis_sim.tiers import LONG_CONTEXT
from hyperflexis_sim.wires import WireRules
from hyperflexis_sim.workload import from_trace

WORKERS = 4
RATES = {"h200": 6.705, "a100": 2.007}
"""Requests a second of four workers at load 1 (bench-slo's capacity search)."""
LOADS = (0.7, 1.0, 1.5, 2.0)
LINKS_GBPS = (330.0, 25.0, 5.0)
AWARE = "aware"
WAYS: Mapping[str, tuple[PrefixRules, WireRules]] = {
    "blind": (PrefixRules(aware=False), WireRules()),
    AWARE: (PrefixRules(), WireRules()),
    **{
        f"pull at {gbps:g} GB/s": (PrefixRules(pull=True), WireRules(gbps=gbps, between_gbps=gbps))
        for gbps in LINKS_GBPS
    },
}
SHOWN = (
    ("attainment", "attained", 1, ".4f"),
    ("ttft_p50_ms", "TTFT p50, ms", 1, ".0f"),
    ("ttft_p99_ms", "TTFT p99, ms", 1, ".0f"),
    ("cached_share", "found, %", 100, ".1f"),
    ("pulled_share", "of it pulled, %", 100, ".1f"),
    ("somewhere_share", "kept anywhere, %", 100, ".1f"),
    ("prefill_saved_s", "prefill saved, s", 1, ".0f"),
)
"""Column, its title, factor and format."""


def run(trace: Named, name: str, gpus: Sequence[str], loads: Sequence[float], seeds: int) -> Iterator[dict[str, Any]]:
    lines, prefixes = trace
    for gpu, load, seed in product(gpus, loads, range(seeds)):
        workload = from_trace(lines, LONG_CONTEXT, seed, jitter=True, prefixes=prefixes).at_rate(RATES[gpu] * load)
        for way, (rules, wires) in WAYS.items():
            about = (name, workload, LONG_CONTEXT, PROFILES[gpu], WORKERS, OURS, load, seed)
            row = Experiment(*about, prefixes=rules, wires=wires).run()[-1]
            print(f"{gpu} {load:g}x {way} seed {seed}: {row['attainment']:.4f}", flush=True)
            yield {"gpu": gpu, "way": way} | row


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Means over the seeds."""
    lines = ["| GPU | load | placement | " + " | ".join(title for _, title, _, _ in SHOWN) + " |"]
    lines.append("|---" * (3 + len(SHOWN)) + "|")
    for gpu, load, way in dict.fromkeys((row["gpu"], row["load"], row["way"]) for row in rows):
        alike = [row for row in rows if (row["gpu"], row["load"], row["way"]) == (gpu, load, way)]
        cells = [f"{factor * fmean(row[column] for row in alike):{style}}" for column, _, factor, style in SHOWN]
        lines.append(f"| {gpu} | {load:g} | {way} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=Path("../shared/traces/mooncake_conversation.csv"))
    parser.add_argument("--gpus", nargs="+", choices=list(PROFILES), default=list(PROFILES))
    parser.add_argument("--loads", nargs="+", type=float, default=LOADS)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/bench/pulls.json"))
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error("--seeds must be at least 1")
    try:
        trace = named_trace(arguments.trace)
    except ValueError as error:
        parser.error(str(error))
    rows = list(run(trace, arguments.trace.stem, arguments.gpus, arguments.loads, arguments.seeds))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"trace": arguments.trace.name, "seeds": arguments.seeds, "rows": rows}
    arguments.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
