"""`python tests/chaos/run.py`: breaks a live cell a given number of times and counts what its clients noticed.

Writes build/chaos/summary.json. Exit status 1 unless every count of damage is zero.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "chaos")]

from chaos import Chaos  # noqa: E402
from chaos_cell import ChaosCell  # noqa: E402
from client_load import Load, Prompt, reference_of  # noqa: E402
from faults import FAULTS, schedule  # noqa: E402
from leadership import cluster_of  # noqa: E402

from hyperflexis_client import AsyncClient  # noqa: E402
from hyperflexis_worker.modelled import reference_tokens  # noqa: E402

SETTLE_S = 45.0
"""Longest that something without an owner may live: detach grace 10 s, sessions, leases."""


async def prompts_for(cell: ChaosCell, seed: int) -> list[Prompt]:
    chance = random.Random(seed)
    if cell.engine == "modelled":
        made = []
        for number in range(64):
            ids = tuple(chance.randrange(32_000) for _ in range(chance.randrange(1, 300)))
            count = chance.choice([1, 2, chance.randrange(3, 60), chance.randrange(60, 200)])
            made.append(Prompt(ids, number, tuple(reference_tokens(ids, number, count, 32_000))))
        return made
    async with AsyncClient(cell.router_addresses()) as client:
        return [
            await reference_of(
                client,
                [chance.randrange(2_000) for _ in range(chance.randrange(1, 60))],
                number,
                chance.randrange(1, 60),
            )
            for number in range(16)
        ]


async def wait_for_workers(cell: ChaosCell, timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while sum(1 for w in (await cluster_of(cell)).workers if w.readiness == 3) < len(cell.workers):
            await asyncio.sleep(0.2)


async def leaks(cell: ChaosCell) -> tuple[int, int, list[str]]:
    """Blocks still owned, leases still held, and who holds them, once everything has had its time."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        view = await cluster_of(cell)
        blocks = sum(w.load.kv.total_blocks - w.load.kv.free_blocks for w in view.workers)
        leases = sum(w.load.kv.leased_blocks + w.load.kv.quarantined_blocks for w in view.workers)
        live = view.active + view.held + sum(w.load.running + w.load.waiting for w in view.workers)
        missing = len(cell.workers) - len(view.workers)
        if (blocks, leases, live, missing) == (0, 0, 0, 0) or time.monotonic() > deadline:
            notes = [] if live == 0 and missing == 0 else [f"{live} requests live, {missing} workers missing"]
            return blocks, leases + live, notes
        await asyncio.sleep(0.5)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cell = ChaosCell(arguments.out / "run", arguments.engine, arguments.seed, arguments.workers, arguments.model)
    counts: Counter[str] = Counter()
    began = time.monotonic()
    try:
        await cell.start()
        await wait_for_workers(cell)
        prompts = await prompts_for(cell, arguments.seed)
        async with Load(cell.router_addresses(), prompts, arguments.streams, arguments.seed) as load:
            chaos = Chaos(cell, load, arguments.seed)
            names = arguments.kinds or schedule(arguments.faults, arguments.seed)
            for number, name in enumerate(names, 1):
                await asyncio.wait_for(FAULTS[name](chaos), 120)
                counts[name] += 1
                await chaos.pause(0.05, arguments.spacing)
                if number % 10 == 0 or number == len(names):
                    tally = load.tally
                    print(
                        f"{number}/{len(names)} faults, {time.monotonic() - began:.0f} s: {tally.requests} requests, "
                        f"{tally.finished} finished, lost {tally.lost_tokens}, repeated {tally.repeated_tokens}, "
                        f"spliced {tally.spliced}, failed {tally.failed_requests}, stuck {tally.stuck_requests}",
                        flush=True,
                    )
            await load.finish()
            tally = load.tally
        blocks, leases, notes = await leaks(cell)
    finally:
        await cell.stop()
    return {
        "faults": dict(sorted(counts.items())),
        "engine": arguments.engine,
        "seed": arguments.seed,
        "wall_s": round(time.monotonic() - began, 1),
        "requests": tally.requests,
        "finished": tally.finished,
        "cancelled": tally.cancelled,
        "lost_tokens": tally.lost_tokens,
        "repeated_tokens": tally.repeated_tokens,
        "spliced": tally.spliced,
        "failed_requests": tally.failed_requests,
        "stuck_requests": tally.stuck_requests,
        "leaked_blocks": blocks,
        "leaked_leases": leases,
        "notes": notes + tally.failures,
    }


DAMAGE = (
    "lost_tokens", "repeated_tokens", "spliced", "failed_requests", "stuck_requests", "leaked_blocks", "leaked_leases",
)  # fmt: skip
COUNTS = ("requests", "finished", "cancelled", *DAMAGE)


async def run_cells(arguments: argparse.Namespace) -> dict[str, Any]:
    """Several cells side by side, each in a process of its own with its part of the faults; their sum."""
    parts = []
    for number in range(arguments.cells):
        share = arguments.faults // arguments.cells + (number < arguments.faults % arguments.cells)
        command = [
            sys.executable,
            __file__,
            "--cells",
            "1",
            "--faults",
            str(share),
            "--seed",
            str(arguments.seed + number),
        ]
        command += [
            "--engine",
            arguments.engine,
            "--workers",
            str(arguments.workers),
            "--streams",
            str(arguments.streams),
        ]
        command += ["--spacing", str(arguments.spacing), "--out", str(arguments.out / f"cell-{number}")]
        command += ["--model", str(arguments.model)] if arguments.model else []
        parts.append(await asyncio.create_subprocess_exec(*command))
    began = time.monotonic()
    statuses = [await part.wait() for part in parts]
    summaries = []
    for number in range(arguments.cells):
        path = arguments.out / f"cell-{number}" / "summary.json"
        if not path.exists():
            raise SystemExit(f"cell {number} ended without a summary (exit status {statuses[number]})")
        summaries.append(json.loads(path.read_text()))
    faults: Counter[str] = Counter()
    for summary in summaries:
        faults.update(summary["faults"])
    return {
        "faults": dict(sorted(faults.items())),
        "engine": arguments.engine,
        "cells": arguments.cells,
        "seed": arguments.seed,
        "wall_s": round(time.monotonic() - began, 1),
        **{key: sum(summary[key] for summary in summaries) for key in COUNTS},
        "notes": [note for summary in summaries for note in summary["notes"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=1_000)
    parser.add_argument("--kinds", nargs="*", choices=sorted(FAULTS), help="these, in this order, instead of --faults")
    parser.add_argument("--cells", type=int, default=3, help="cells side by side, each with its part of the faults")
    parser.add_argument("--engine", choices=["modelled", "embedded"], default="modelled")
    parser.add_argument("--model", type=Path, help="checkpoint directory for the embedded engine")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--streams", type=int, default=4)
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
    if any(summary[key] for key in DAMAGE):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
