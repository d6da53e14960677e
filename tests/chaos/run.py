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
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "tests" / "chaos")]

from chaos import Chaos  # noqa: E402
from chaos_cell import ChaosCell  # noqa: E402
from client_load import Load  # noqa: E402
from faults import FAULTS, endless, schedule  # noqa: E402
from move_count import MoveCount  # noqa: E402
from move_faults import MOVE_FAULTS  # noqa: E402
from orders import Orders  # noqa: E402
from prompts import COMPARED_WITH, DOCUMENT_TOKENS, prompts_for  # noqa: E402
from reach import unreached  # noqa: E402
from remains import remains_of, wait_for_workers  # noqa: E402
from summary import sum_of, summary_of, verdict_of  # noqa: E402

FAULT_LIMIT_S = 120.0
BLOCKS, DOCUMENT_BLOCKS = 2_048, 640
"""Of a pool; with a dozen documents or more so few that no worker keeps all of them."""
TRIES = 2
"""A fault that has not fired is made once more: the cell may just have had nothing to break."""


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    cell = ChaosCell(
        arguments.out / "run",
        arguments.engine,
        arguments.seed,
        arguments.workers,
        arguments.model,
        arguments.transports,
        DOCUMENT_BLOCKS if arguments.documents else BLOCKS,
    )
    fired: Counter[str] = Counter()
    not_fired: Counter[str] = Counter()
    began = time.monotonic()
    try:
        await cell.start()
        await wait_for_workers(cell)
        prompts = await prompts_for(cell, arguments.seed, arguments.documents)
        async with (
            Load(cell.router_addresses(), prompts, arguments.streams, arguments.seed) as load,
            Orders(cell) as orders,
            MoveCount(cell.metrics) as moves,
        ):
            chaos = Chaos(cell, load, orders, moves, arguments.seed)
            for number, name in enumerate(names_of(arguments), 1):
                (fired if await make(chaos, name, arguments.spacing) else not_fired)[name] += 1
                if number % 10 == 0:
                    print(progress(chaos, number, began), flush=True)
                if arguments.moves and moves.done.total() >= arguments.moves:
                    break
            await load.finish()
            print(progress(chaos, fired.total() + not_fired.total(), began), flush=True)
            broken = await unreached(chaos)
            tally = load.tally
        for way in broken:
            tally.note(way)
        remains = replace(await remains_of(cell), broken_ways=len(broken))
    finally:
        await cell.stop()
    (arguments.out / "silences.json").write_text(json.dumps([round(s, 3) for s in tally.silences.longest_s]))
    about = about_of(arguments, began) | {"seed": arguments.seed, "prompts": len(prompts)}
    about["prompts_with_documents"] = sum(len(prompt.token_ids) >= DOCUMENT_TOKENS[0] for prompt in prompts)
    by_kind = {
        "faults": fired, "not_fired": not_fired, "moves": moves.done, "moves_failed": moves.failed,
        "pulls": moves.pulls, "kills": cell.kills,
    }  # fmt: skip
    return summary_of(tally, by_kind, remains, **about)


def names_of(arguments: argparse.Namespace) -> Iterable[str]:
    """The faults in their order; without an end where moves are counted instead."""
    if arguments.moves:
        return endless(arguments.kinds or [fault.__name__ for fault in MOVE_FAULTS], arguments.seed)
    names: list[str] = arguments.kinds or schedule(arguments.faults, arguments.seed)
    return names


def progress(chaos: Chaos, faults: int, began: float) -> str:
    moves = ", ".join(f"{count} {kind}" for kind, count in sorted(chaos.moves.done.items()))
    pulls = f", {chaos.moves.pulls['read']} of {chaos.moves.pulls.total()} pulls" if chaos.moves.pulls else ""
    return f"{faults} faults, {time.monotonic() - began:.0f} s, {moves or 'no moves'}{pulls}: {chaos.load.tally.line()}"


def about_of(arguments: argparse.Namespace, began: float) -> dict[str, Any]:
    return {
        "engine": arguments.engine,
        "compared_with": COMPARED_WITH[arguments.engine],
        "transports": arguments.transports or "as the engine has them",
        "moves_wanted": arguments.moves,
        "documents": arguments.documents,
        "wall_s": round(time.monotonic() - began, 1),
    }


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
        options = {
            "--cells": 1,
            "--faults": share_of(arguments.faults, arguments.cells, number),
            "--moves": share_of(arguments.moves, arguments.cells, number),
            "--seed": arguments.seed + number,
            "--documents": arguments.documents,
            "--engine": arguments.engine,
            "--workers": arguments.workers,
            "--streams": arguments.streams,
            "--spacing": arguments.spacing,
            "--out": folder,
            **({"--model": arguments.model} if arguments.model else {}),
        }
        words = [str(word) for option in options.items() for word in option]
        for name in ("kinds", "transports"):
            if values := getattr(arguments, name):
                words += [f"--{name}", *values]
        parts.append(await asyncio.create_subprocess_exec(sys.executable, __file__, *words))
    statuses = [await part.wait() for part in parts]
    for number, folder in enumerate(folders):
        if not (folder / "summary.json").exists():
            raise SystemExit(f"cell {number} ended without a summary (exit status {statuses[number]})")
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    silences_s = [silence for folder in folders for silence in json.loads((folder / "silences.json").read_text())]
    about = about_of(arguments, began) | {"cells": arguments.cells, "seed": arguments.seed}
    return sum_of(summaries, silences_s, **about)


def share_of(count: int, cells: int, number: int) -> int:
    return count // cells + (number < count % cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=1_000)
    parser.add_argument("--kinds", nargs="*", choices=sorted(FAULTS), help="these, in this order, instead of --faults")
    parser.add_argument(
        "--moves", type=int, default=0, help="until so many are done, by --kinds in random order, again and again"
    )
    parser.add_argument(
        "--documents", type=int, default=0, help="that every second prompt begins with, so that prefixes are pulled"
    )
    parser.add_argument(
        "--transports", nargs="*", choices=["nixl", "grpc"], help="of caches; else as the engine has it"
    )
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
    several = arguments.cells > 1 and (arguments.moves or not arguments.kinds)
    summary = asyncio.run(run_cells(arguments) if several else run(arguments))
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=2))
    print(json.dumps(summary, indent=2))
    if wrong := verdict_of(summary):
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
