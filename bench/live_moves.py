"""What moving costs those who are moved, on live services: how long a request stands still, how long a flip takes, what
a hand-off does to the first token, what a hundred flips a minute do to promises.

Rows for bench/kv.py. Clients measure; the scheduler's own account of each move is asked for afterwards.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import grpc.aio
from live_cell import LiveCell, Reading, Role, live_cell, prompt_of

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as wire
from hyperflexis_client import Verdict
from hyperflexis_common.server import cancel_all

SIZES = (512, 2_048, 8_192)
REPEATS = 5
MIXED, PREFILL, DECODE = capability_pb2.ROLE_MIXED, capability_pb2.ROLE_PREFILL, capability_pb2.ROLE_DECODE


# --- stalls ----------------------------------------------------------------------------------------------


async def stalls(running: LiveCell) -> list[dict[str, Any]]:
    """A request of each size decodes alone and is moved, there and back."""
    names = await running.workers()
    rows = []
    for size in SIZES:
        gaps, stood, took, steps = [], [], [], []
        for repeat in range(REPEATS):
            reading = Reading()
            task = asyncio.create_task(running.read(prompt_of(size, repeat), 160, repeat, reading=reading))
            for made in (40, 100):
                while len(reading.tokens) < made and not task.done():
                    await asyncio.sleep(0.002)
                await _move_anywhere(running, reading.request_id, names)
            await task
            step_ms = statistics.median(reading.gaps_ms)
            told = await running.told(reading.request_id, "moved")
            gaps.append(max(reading.gaps_ms) - step_ms)
            steps.append(max(reading.gaps_ms) / step_ms)
            stood += [move["stopped_us"] / 1e3 for move in told]
            took += [move["took_us"] / 1e3 for move in told]
        rows.append(
            {
                "measure": "migration",
                "prompt_tokens": size,
                "moves": len(stood),
                "stall_ms": round(statistics.median(gaps), 2),
                "stall_steps": round(statistics.median(steps) - 1, 2),
                "stopped_ms": round(statistics.median(stood), 2),
                "move_ms": round(statistics.median(took), 1),
            }
        )
    return rows


async def _move_anywhere(running: LiveCell, request_id: str, names: Sequence[str]) -> None:
    for name in names:
        try:
            migrate = wire.MigrateRequest(request_id=request_id, target_worker_id=name)
            return await running.apply(migrate=migrate)
        except grpc.aio.AioRpcError as error:
            if "runs there already" not in (error.details() or ""):
                raise


# --- flips and hand-offs ---------------------------------------------------------------------------------


async def flips(running: LiveCell, count: int = 40) -> dict[str, Any]:
    name = (await running.workers())[0]
    took = [await running.set_role(name, (PREFILL, MIXED)[number % 2]) for number in range(count)]
    return {
        "measure": "flip",
        "flips": count,
        "flip_ms": round(statistics.median(took), 2),
        "worst_ms": round(max(took), 2),
    }


async def hand_offs(running: LiveCell, requests: int = 40) -> list[dict[str, Any]]:
    """The same summaries, one every 400 ms, with two workers that do both, then with one that prefills for the other.

    Measured are those that were handed off, in both runs: what is prefilled within a step goes straight to where it
    will decode, and would say nothing of hand-offs.
    """
    first, *others = await running.workers()
    served: dict[str, list[Reading]] = {}
    for name, role, rest in (("collocated", MIXED, MIXED), ("handed_off", PREFILL, DECODE)):
        await running.set_role(first, role)
        for other in others:
            await running.set_role(other, rest)
        served[name] = await _serve(running, _poisson(requests, 0.4, seed=1), name, seed=1, long_share=1.0)
    for name in (first, *others):
        await running.set_role(name, MIXED)
    told = [await running.told(reading.request_id, "moved") for reading in served["handed_off"]]
    stood = [move["stopped_us"] / 1e3 for moves in told for move in moves]
    moved = [number for number, moves in enumerate(told) if moves]
    if len(moved) < requests // 4:
        raise RuntimeError(f"{len(moved)} of {requests} were handed off: too few to say anything")
    return [_row_of(name, [readings[number] for number in moved], stood) for name, readings in served.items()]


def _row_of(name: str, readings: Sequence[Reading], stood_ms: Sequence[float]) -> dict[str, Any]:
    firsts = [reading.ttft_ms for reading in readings]
    return {
        "measure": name,
        "requests": len(readings),
        "ttft_p50_ms": round(statistics.median(firsts), 1),
        "ttft_p95_ms": round(statistics.quantiles(firsts, n=20)[-1], 1),
        "gap_p50_ms": round(statistics.median(max(reading.gaps_ms) for reading in readings), 1),
        "stopped_ms": round(statistics.median(stood_ms), 2) if name == "handed_off" else None,
    }


async def flip_storm(running: LiveCell, seconds: float = 60.0, a_minute: int = 100) -> list[dict[str, Any]]:
    """Attainment of the same traffic without flips and with so many a minute."""
    rows = []
    for name, flip in (("undisturbed", False), ("flips", True)):
        flipper = Flipper(running, await running.workers())
        task = asyncio.create_task(flipper.run(60.0 / a_minute)) if flip else None
        readings = await _serve(running, _poisson(int(seconds / 0.12), 0.12, seed=2), name, seed=2)
        if task is not None:
            await cancel_all(task)
        await flipper.rest()
        attained = sum(reading.verdict is Verdict.ATTAINED for reading in readings)
        share = round(attained / len(readings), 4)
        rows.append(
            {"measure": f"storm_{name}", "requests": len(readings), "flips": flipper.count, "attainment": share}
        )
    return rows


class Flipper:
    """Roles drawn at random, so that somebody prefills and somebody decodes."""

    def __init__(self, running: LiveCell, names: Sequence[str]) -> None:
        self._running = running
        self._roles: dict[str, Role] = dict.fromkeys(names, MIXED)
        self._chance = random.Random(3)
        self.count = 0

    async def run(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            name = self._chance.choice(sorted(self._roles))
            wanted = self._chance.choice([role for role in (MIXED, PREFILL, DECODE) if role != self._roles[name]])
            after = {**self._roles, name: wanted}.values()
            if all(role == PREFILL for role in after) or all(role == DECODE for role in after):
                wanted = MIXED
            self._roles[name] = wanted
            await self._running.set_role(name, wanted)
            self.count += 1

    async def rest(self) -> None:
        for name in self._roles:
            await self._running.set_role(name, MIXED)


def _poisson(count: int, mean_s: float, seed: int) -> Iterator[float]:
    chance = random.Random(seed)
    return (chance.expovariate(1 / mean_s) for _ in range(count))


async def _serve(
    running: LiveCell, waits: Iterator[float], run: str, seed: int, long_share: float = 0.2
) -> list[Reading]:
    """Chats of some hundred tokens and, by default one in five, summaries of some thousand. Of one seed they have the
    same lengths, but the words of each run are its own: the next one must not find them cached."""
    chance, words, tasks = random.Random(seed), random.Random(run), []
    for number, wait_s in enumerate(waits):
        await asyncio.sleep(wait_s)
        long = chance.random() < long_share
        tokens = chance.randrange(2_000, 8_000) if long else chance.randrange(50, 1_000)
        prompt = prompt_of(tokens, words.getrandbits(32))
        tier = "summarise" if long else "chat"
        tasks.append(asyncio.create_task(running.read(prompt, chance.randrange(20, 150), number, tier)))
    return list(await asyncio.gather(*tasks))


async def rows(quick: bool = False) -> list[dict[str, Any]]:
    """All of it; about three minutes."""
    found: list[dict[str, Any]] = []
    async with live_cell(2) as running:
        found += await stalls(running)
        found.append(await flips(running))
        found += await hand_offs(running, 10 if quick else 40)
    async with live_cell(4) as running:
        found += await flip_storm(running, 10.0 if quick else 60.0)
    return found
