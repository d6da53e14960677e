"""`python tests/chaos/run.py`: breaks a live cell a given number of times and counts what its clients noticed.

Writes build/chaos/summary.json. Exit status 1 unless every count of damage is zero and the faults did happen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "chaos")]

from chaos import Chaos  # noqa: E402
from chaos_cell import ChaosCell  # noqa: E402
from client_load import Load  # noqa: E402
from faults import FAULTS, schedule  # noqa: E402
from prompts import prompts_for  # noqa: E402
from remains import remains_of, wait_for_workers  # noqa: E402
from summary import sum_of, summary_of, verdict_of  # noqa: E402

FAULT_LIMIT_S = 120.0
TRIES = 2
"""A fault that has not fired is made once more: the cell may just have had nothing to break."""


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cell = ChaosCell(arguments.out / "run", arguments.engine, arguments.seed, arguments.workers, arguments.model)
    fired: Counter[str] = Counter()
    not_fired: Counter[str] = Counter()
    began = time.monotonic()
    try:
        await cell.start()
        await wait_for_workers(cell)
        prompts = await prompts_for(cell, arguments.seed)
        async with Load(cell.router_addresses(), prompts, arguments.streams, arguments.seed) as load:
            chaos = Chaos(cell, load, arguments.seed)
            names = arguments.kinds or schedule(arguments.faults, arguments.seed)
            for number, name in enumerate(names, 1):
                (fired if await make(chaos, name, arguments.spacing) else not_fired)[name] += 1
                if number % 10 == 0 or number == len(names):
                    print(
                        f"{number}/{len(names)} faults, {time.monotonic() - began:.0f} s: {load.tally.line()}",
                        flush=True,
                    )
            await load.finish()
            tally = load.tally
        remains = await remains_of(cell)
    finally:
        await cell.stop()
    (arguments.out / "silences.json").write_text(json.dumps([round(s, 3) for s in tally.silences.longest_s]))
    about = {"engine": arguments.engine, "seed": arguments.seed, "wall_s": round(time.monotonic() - began, 1)}
    return summary_of(tally, fired, not_fired, remains, **about)


async def make(chaos: Chaos, name: str, spacing: float) -> bool:
    """One fault; False where it had no effect."""
    for _ in range(TRIES):
        fired = await asyncio.wait_for(FAULTS[name](chaos), FAULT_LIMIT_S)
        await chaos.pause(0.05, spacing)
        if fired:
            return True
        print(f"{name} did not fire", flush=True)
    return False


async def run_cells(arguments: argparse.Namespace) -> dict[str, Any]:
    """Several cells side by side, each in a process of its own with its part of the faults; their sum."""
    began = time.monotonic()
    folders = [arguments.out / f"cell-{number}" for number in range(arguments.cells)]
    parts = []
    for number, folder in enumerate(folders):
        share = arguments.faults // arguments.cells + (number < arguments.faults % arguments.cells)
        options = {
            "--cells": 1,
            "--faults": share,
            "--seed": arguments.seed + number,
            "--engine": arguments.engine,
            "--workers": arguments.workers,
            "--streams": arguments.streams,
            "--spacing": arguments.spacing,
            "--out": folder,
            **({"--model": arguments.model} if arguments.model else {}),
        }
        words = [str(word) for option in options.items() for word in option]
        parts.append(await asyncio.create_subprocess_exec(sys.executable, __file__, *words))
    statuses = [await part.wait() for part in parts]
    for number, folder in enumerate(folders):
        if not (folder / "summary.json").exists():
            raise SystemExit(f"cell {number} ended without a summary (exit status {statuses[number]})")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    silences_s = [silence for folder in folders for silence in json.loads((folder / "silences.json").read_text())]
    about = {"engine": arguments.engine, "cells": arguments.cells, "seed": arguments.seed}
    return sum_of(summaries, silences_s, **about, wall_s=round(time.monotonic() - began, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=1_000)
    parser.add_argument("--kinds", nargs="*", choices=sorted(FAULTS), help="these, in this order, instead of --faults")
    parser.add_argument("--cells", type=int, default=3, help="cells side by side, each with its part of the faults")
    parser.add_argument("--engine", choices=["modelled", "embedded"], default="modelled")
    parser.add_argument("--model", type=Path, help="checkpoint directory for the embedded engine")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--spacing", type=float, default=0.2, help="seconds between faults, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "chaos")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "summary.json").unlink(missing_ok=True)
    several = arguments.cells > 1 and not arguments.kinds
    summary = asyncio.run(run_cells(arguments) if several else run(arguments))
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps(summary, indent=2))
    if wrong := verdict_of(summary):
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
