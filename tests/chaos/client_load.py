"""Clients under chaos: streams that never stop, each checked token by token against an undisturbed run."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Sequence
from typing import Any

from reading import Prompt, Reading
from tally import Tally

from hyperflexis_client import AsyncClient, Sampling

STUCK_S = 300.0
"""A stream that has not ended after this is stuck, on however slow a machine; silences are judged long before."""
LONG_TOKENS = 60
"""Outputs at least this long are still under way when a fault looks for one; the longest outlast its graces."""


class Load:
    """Keeps `streams` requests going until stopped."""

    def __init__(self, targets: Sequence[str], prompts: Sequence[Prompt], streams: int, seed: int) -> None:
        self.tally = Tally()
        self.client = AsyncClient(targets)
        longest = max(len(prompt.reference) for prompt in prompts)
        self._longest = [prompt for prompt in prompts if len(prompt.reference) == longest]
        self._prompts = [prompt for prompt in prompts if len(prompt.reference) < longest]
        self._long = [prompt for prompt in self._prompts if len(prompt.reference) >= LONG_TOKENS]
        self._streams = streams
        self._chance = random.Random(seed)
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._extra: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._stream_after_stream()) for _ in range(self._streams)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._extra, return_exceptions=True)
        await self.client.close()

    async def finish(self) -> None:
        """No new requests; those under way run to their end, then one more on each stream: the cell has healed."""
        self._stopping = True
        await asyncio.gather(*self._tasks, *self._extra)
        await asyncio.gather(*(self.one() for _ in range(self._streams)))

    def also(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Something beside the steady streams. What it raises outside of a Reading is a failed request as well."""
        task = asyncio.create_task(self._guarded(work))
        self._extra.add(task)
        task.add_done_callback(self._extra.discard)
        return task

    def request(self, prompt: Prompt, name: str = "", client: AsyncClient | None = None, **options: Any) -> Reading:
        sampling = sampling_of(prompt.seed, len(prompt.reference), prompt.temperature)
        generation = (client or self.client).generate(
            "m", prompt.token_ids, sampling=sampling, tier="chat", timeout_s=STUCK_S, return_text=False, **options
        )
        return Reading(self.tally, generation, prompt, name)

    def prompt(self) -> Prompt:
        return self._chance.choice(self._prompts)

    def long_prompt(self) -> Prompt:
        """Its output takes about a second."""
        return self._chance.choice(self._long)

    def longest_prompt(self) -> Prompt:
        """Its output takes about ten seconds."""
        return self._chance.choice(self._longest)

    async def one(self, pause_s: float = 0.0) -> None:
        async with self.request(self.prompt()) as reading, asyncio.timeout(STUCK_S + 5):
            await reading.read(pause_s=pause_s)

    async def _stream_after_stream(self) -> None:
        while not self._stopping:
            await self.one(pause_s=0.05 if self._chance.random() < 0.05 else 0.0)

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self.tally.failed_requests += 1
            self.tally.note(f"beside the streams: {type(error).__name__}: {error}")


async def reference_of(
    client: AsyncClient, token_ids: Sequence[int], seed: int, count: int, temperature: float
) -> Prompt:
    """Asks the undisturbed cell: for engines whose output nobody can work out beforehand."""
    sampling = sampling_of(seed, count, temperature)
    result = await client.generate("m", list(token_ids), sampling=sampling, tier="chat", timeout_s=STUCK_S).result()
    return Prompt(tuple(token_ids), seed, tuple(result.token_ids), temperature)


def sampling_of(seed: int, count: int, temperature: float) -> Sampling:
    return Sampling(max_tokens=count, seed=seed, ignore_eos=True, temperature=temperature)
