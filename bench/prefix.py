"""`python bench/prefix.py`: what placement by cached prefixes is worth, on live services with the modelled engine.

The conversation trace tells how many tokens of each prompt an earlier one began with, not which one: a prompt here
continues the latest earlier one that is long enough, and short shared beginnings are those of one system prompt. The
same requests are served four times: placed by what workers keep, which is read from a peer where that is quicker than
to compute it (pulls) or not (prefix_aware), without looking at it (blind), and in turn (round_robin); workers keep
prefixes in all four. A token of a modelled cache has 8 bytes: a read takes what is around it, and no time on a link.
Writes build/bench/prefix.json, a row each.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from live_cell import VOCAB, LiveCell, Reading, live_cell, prompt_of
from prefix_trace import named_trace

from hyperflexis_client import Verdict
from hyperflexis_sim.prefix_cache import BLOCK_TOKENS

TRACE = Path("../shared/traces/mooncake_conversation.csv")
SYSTEM_TOKENS = 512
CONTEXT = 32_768
"""Of the engine: longer requests of the trace are left out."""
WAYS: dict[str, dict[str, Any]] = {
    "pulls": {},
    "prefix_aware": {"prefix_pulls": False},
    "blind": {"prefix_aware": False},
    "round_robin": {"policy": "round_robin", "prefix_pulls": False},
}

Request = tuple[float, list[int], int]
"""Arrival in seconds, prompt, output tokens."""


def requests_of(trace: Path, seconds: float, load: float, seed: int = 0) -> list[Request]:
    """Those that arrive in the first seconds of the trace, `load` times as fast."""
    chance = random.Random(seed)
    system = [chance.randrange(VOCAB) for _ in range(SYSTEM_TOKENS)]
    found: list[Request] = []
    with trace.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            arrival_s, prompt_tokens, output_tokens = (
                float(row["arrival_s"]) / load,
                int(row["prompt_tokens"]),
                int(row["output_tokens"]),
            )
            if arrival_s >= seconds:
                break
            if prompt_tokens + output_tokens > CONTEXT:
                continue
            shared = min(int(row["reusable_prefix_tokens"]), prompt_tokens - 1)
            parents = [prompt for _, prompt, _ in reversed(found) if len(prompt) >= shared]
            begins = system if shared <= SYSTEM_TOKENS or not parents else parents[0]
            prompt = begins[:shared] + [
                chance.randrange(VOCAB) for _ in range(prompt_tokens - min(shared, len(begins)))
            ]
            found.append((arrival_s + chance.random() / load, prompt, output_tokens))
    return sorted(found, key=lambda request: request[0])


def named_requests(trace: Path, seconds: float, load: float) -> list[Request]:
    """The same of a trace that names the blocks of each prompt: equal names, equal tokens."""
    found: list[Request] = []
    rows, names = named_trace(trace)
    for number, (row, blocks) in enumerate(zip(rows, names, strict=True)):
        arrival_s = row.arrival_s / load
        if arrival_s >= seconds:
            break
        if row.prompt_tokens + row.output_tokens > CONTEXT:
            continue
        prompt = [token for name in blocks for token in prompt_of(BLOCK_TOKENS, int.from_bytes(name))]
        prompt += prompt_of(row.prompt_tokens - len(prompt), -1 - number)
        # Arrivals are told to three seconds.
        spread_s = 3 * random.Random(number).random() / load
        found.append((arrival_s + spread_s, prompt, row.output_tokens))
    return sorted(found, key=lambda request: request[0])


async def serve(running: LiveCell, requests: list[Request]) -> list[Reading]:
    began, tasks = time.perf_counter(), []
    for number, (at_s, prompt, output_tokens) in enumerate(requests):
        await asyncio.sleep(max(began + at_s - time.perf_counter(), 0))
        reading = running.read(prompt, output_tokens, number, tier="summarise", check=False)
        tasks.append(asyncio.create_task(reading))
    return list(await asyncio.gather(*tasks))


async def measure(way: str, workers: int, requests: list[Request]) -> dict[str, Any]:
    async with live_cell(workers, scheduler=WAYS[way]) as running:
        readings = await serve(running, requests)
        ends = [end for reading in readings for end in await running.told(reading.request_id, "finish")]
    cached = sum(end.get("cached_tokens", 0.0) for end in ends)
    waits_ms = sorted(end["pull_us"] / 1e3 for end in ends if "pull_us" in end)
    ttft_ms = sorted(reading.ttft_ms for reading in readings if reading.at_s)
    prompt_tokens = sum(len(prompt) for _, prompt, _ in requests)
    percentiles = statistics.quantiles(ttft_ms, n=100)
    return {
        "placement": way,
        "requests": len(readings),
        "served": len(ttft_ms),
        "attained": sum(reading.verdict is Verdict.ATTAINED for reading in readings),
        "hit_rate": round(cached / prompt_tokens, 4),
        "read_rate": round(sum(end.get("pulled_tokens", 0.0) for end in ends) / prompt_tokens, 4),
        "pulls": len(waits_ms),
        "pulls_in_vain": sum("pull_us" in end and "pulled_tokens" not in end for end in ends),
        "pull_wait_p50_ms": round(statistics.median(waits_ms), 1) if waits_ms else 0.0,
        "pull_wait_max_ms": round(waits_ms[-1], 1) if waits_ms else 0.0,
        "ttft_p50_ms": round(percentiles[49], 1),
        "ttft_p95_ms": round(percentiles[94], 1),
        "ttft_p99_ms": round(percentiles[98], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, default=TRACE)
    parser.add_argument("--seconds", type=float, default=90.0, help="Of arrivals.")
    parser.add_argument("--load", type=float, default=2.0, help="Times the trace's own rate.")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--out", type=Path, default=Path("build/bench/prefix.json"))
    arguments = parser.parse_args()
    read = named_requests if arguments.trace.suffix == ".jsonl" else requests_of
    requests = read(arguments.trace, arguments.seconds, arguments.load)
    rows = []
    for way in arguments.ways:
        row = asyncio.run(measure(way, arguments.workers, requests))
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
        rows.append(row)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "trace": arguments.trace.name,
        "seconds": arguments.seconds,
        "load": arguments.load,
        "workers": arguments.workers,
    }
    arguments.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
