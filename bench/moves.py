"""`python bench/moves.py`: what it is worth that running requests move, and that roles adapt.

Worlds: workers that are alike, one that is secretly half as fast, two kinds of GPU, small KV pools, one that leaves.
Attainment under each policy against workers that all do both and move nothing, in pairs of equal seeds; where a worker
leaves, also how long it takes until it is empty. Writes build/bench/moves.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from slo_environments import PROFILES, Environment

from hyperflexis_cli.load_plots import OURS
from hyperflexis_sim.interval import half_width_95

STAYS = OURS + "@mixed:move=none"
SLICE_S = 60.0
RATES = {
    ("mix_poisson", "h200"): 90.7,
    ("mix_poisson", "a100"): 26.8,
    ("azure_2023_code", "h200"): 51.7,
    ("azure_2023_conv", "h200"): 100.8,
    ("azure_2023_conv", "a100"): 30.0,
}
"""Requests a second of four workers at load 1 (bench-slo's capacity search; the last one its guess)."""
TWO_KINDS = "+".join(PROFILES.values())
TWO_KINDS_LOAD = 0.65
"""Load 1 of two H200 and two A100, in that of four H200."""


@dataclass(frozen=True, slots=True)
class World:
    name: str
    trace: str
    gpu: str
    load: float
    changes: Mapping[str, Any] = field(default_factory=dict)

    def run(self, directory: Path, policy: str, seed: int) -> list[dict[str, Any]]:
        environment = Environment(self.trace, self.gpu, 4, slice_s=SLICE_S, cut_traces=True)
        rate = RATES[self.trace, self.gpu] * self.load
        experiment = environment.experiment(directory, policy, rate, self.load, seed)
        return replace(experiment, **self.changes).run()


def worlds() -> Iterator[World]:
    mix, code, conv = "mix_poisson", "azure_2023_code", "azure_2023_conv"
    for trace, gpu, load in ((mix, "a100", 1.0), (mix, "a100", 1.5), (conv, "a100", 1.0), (mix, "h200", 1.0)):
        yield World("alike", trace, gpu, load)
    for trace, gpu, load in ((mix, "a100", 1.0), (mix, "a100", 1.5), (mix, "h200", 1.0), (code, "h200", 1.0)):
        yield World("one 2x slower", trace, gpu, load, {"slow_worker": 2.0})
    for trace, load in ((mix, 1.0), (mix, 1.5), (code, 1.0), (conv, 1.5)):
        yield World("two kinds of GPU", trace, "h200", load * TWO_KINDS_LOAD, {"profile": TWO_KINDS})
    for trace, gpu in ((mix, "a100"), (mix, "h200")):
        yield World("a tenth of the KV pool", trace, gpu, 1.0, {"kv_share": 0.1})
    for trace, gpu, load in ((mix, "a100", 0.7), (mix, "h200", 0.7), (conv, "h200", 0.7)):
        yield World("one leaves after 30 s", trace, gpu, load, {"leaves": ((30.0, 3),)})


def policies(world: World) -> list[str]:
    if "leaves" in world.changes:
        return [STAYS, f"{OURS}@mixed"]
    return [STAYS, f"{OURS}@adaptive:short=false", f"{OURS}@adaptive", f"{OURS}@1p3m"]


def run(directory: Path, seeds: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for world in worlds():
        for policy in policies(world):
            for seed in range(seeds):
                row = world.run(directory, policy, seed)[-1]
                found.append({"world": world.name, "gpu": world.gpu} | row)
            values = [row["attainment"] for row in found[-seeds:]]
            print(f"{world.name}, {world.trace}/{world.gpu} {world.load:g} {policy}: {fmean(values):.4f}", flush=True)
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Points won or lost against what moves nothing, each with half of its 95 % interval."""
    lines = ["| world | workload | stays | policy | points | moved | empty after, s |", "|---" * 7 + "|"]
    for world in worlds():
        of_world = [r for r in rows if (r["world"], r["trace"], r["load"]) == (world.name, world.trace, world.load)]
        of_world = [r for r in of_world if r["gpu"] == world.gpu]
        of_base = [r for r in of_world if r["policy"] == STAYS]
        base = [r["attainment"] for r in of_base]
        for policy in policies(world)[1:]:
            mine = [r for r in of_world if r["policy"] == policy]
            gains = [100 * (r["attainment"] - other) for r, other in zip(mine, base, strict=True)]
            cells = [world.name, f"{world.trace}/{world.gpu} {world.load:g}x", f"{fmean(base):.3f}"]
            cells += [policy.partition("@")[2], f"{fmean(gains):+.2f} ± {half_width_95(gains):.2f}"]
            cells.append(f"{fmean(r['migrated'] for r in mine):.0f}")
            empty = [max(row.get("empty_after_s", 0.0) for row in each) for each in (of_base, mine)]
            cells.append(f"{empty[0]:.1f} -> {empty[1]:.1f}" if empty[0] else "")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"))
    parser.add_argument("--out", type=Path, default=Path("build/bench/moves.json"))
    arguments = parser.parse_args()
    if not arguments.traces.is_dir():
        parser.error(f"--traces: {arguments.traces} is no directory")
    if arguments.seeds < 1:
        parser.error("--seeds must be at least 1")
    rows = run(arguments.traces, arguments.seeds)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"seeds": arguments.seeds, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
