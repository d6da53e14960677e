"""Clients under chaos: streams that never stop, each checked token by token against an undisturbed run."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyperflexis_client import (
    AsyncClient,
    AsyncGeneration,
    Delta,
    FinishReason,
    HyperFlexisError,
    ProtocolError,
    Sampling,
)

STUCK_S = 120.0
"""A stream that has not ended after this is stuck: no fault here lasts longer than 35 s."""


@dataclass(frozen=True)
class Prompt:
    """A request whose output is known beforehand."""

    token_ids: tuple[int, ...]
    seed: int
    reference: tuple[int, ...]


@dataclass
class Tally:
    """What became of all requests: each one finished, or was cancelled by its own client. The rest must be zero."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    resumed: int = 0
    lost_tokens: int = 0
    repeated_tokens: int = 0
    spliced: int = 0
    failed_requests: int = 0
    stuck_requests: int = 0
    failures: list[str] = field(default_factory=list)


class Load:
    """Keeps `streams` requests going until stopped."""

    def __init__(self, targets: Sequence[str], prompts: Sequence[Prompt], streams: int, seed: int) -> None:
        self.tally = Tally()
        self.live: dict[AsyncGeneration, Prompt] = {}
        self._targets = list(targets)
        self._prompts = list(prompts)
        self._streams = streams
        self._chance = random.Random(seed)
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._extra: set[asyncio.Task[None]] = set()
        self.client = AsyncClient(self._targets)

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
        await asyncio.gather(*(self.one(self.prompt()) for _ in range(self._streams)))

    def also(self, make: Callable[[Load], Coroutine[Any, Any, None]]) -> None:
        """One more request beside the steady ones."""
        task = asyncio.create_task(make(self))
        self._extra.add(task)
        task.add_done_callback(self._extra.discard)

    def prompt(self) -> Prompt:
        return self._chance.choice(self._prompts)

    def generation(self, prompt: Prompt, **options: Any) -> AsyncGeneration:
        self.tally.requests += 1
        sampling = Sampling(max_tokens=len(prompt.reference), seed=prompt.seed, ignore_eos=True, temperature=0.0)
        return self.client.generate(
            "m", prompt.token_ids, sampling=sampling, tier="chat", timeout_s=STUCK_S, return_text=False, **options
        )

    async def _stream_after_stream(self) -> None:
        while not self._stopping:
            await self.one(self.prompt(), pause_s=0.2 if self._chance.random() < 0.05 else 0.0)

    async def one(self, prompt: Prompt, pause_s: float = 0.0, **options: Any) -> None:
        """A request read to its end. `pause_s`: a slow reader's pause after each delta."""
        generation = self.generation(prompt, **options)
        self.live[generation] = prompt
        received: list[int] = []
        try:
            async with asyncio.timeout(STUCK_S + 5):
                async for event in generation:
                    if isinstance(event, Delta):
                        self._take(received, event, prompt)
                        if pause_s:
                            await asyncio.sleep(pause_s)
        except ProtocolError as error:
            self.tally.repeated_tokens += 1
            self._note(generation, error)
        except (TimeoutError, HyperFlexisError) as error:
            if generation.finished is None and "not finished within" in f"{error}" or isinstance(error, TimeoutError):
                self.tally.stuck_requests += 1
            else:
                self.tally.failed_requests += 1
            self._note(generation, error)
        else:
            self._ended(generation, received, prompt)
        finally:
            self.live.pop(generation, None)

    def _take(self, received: list[int], delta: Delta, prompt: Prompt) -> None:
        if delta.start_index != len(received):
            self.tally.repeated_tokens += max(len(received) - delta.start_index, 0)
            self.tally.lost_tokens += max(delta.start_index - len(received), 0)
        received += delta.token_ids
        if tuple(received) != prompt.reference[: len(received)]:
            self.tally.spliced += 1

    def _ended(self, generation: AsyncGeneration, received: list[int], prompt: Prompt) -> None:
        finished = generation.finished
        if finished is not None and finished.reason == FinishReason.LENGTH:
            self.tally.finished += 1
            self.tally.lost_tokens += len(prompt.reference) - len(received)
        else:
            self.tally.failed_requests += 1
            self._note(generation, finished)

    def _note(self, generation: AsyncGeneration, what: object) -> None:
        if len(self.tally.failures) < 50:
            self.tally.failures.append(f"{generation.request_id}: {type(what).__name__}: {what}"[:400])


async def reference_of(client: AsyncClient, token_ids: Sequence[int], seed: int, count: int) -> Prompt:
    """Asks the undisturbed cell: for engines whose output nobody can work out beforehand."""
    sampling = Sampling(max_tokens=count, seed=seed, ignore_eos=True, temperature=0.0)
    result = await client.generate("m", list(token_ids), sampling=sampling, tier="chat", timeout_s=STUCK_S).result()
    return Prompt(tuple(token_ids), seed, tuple(result.token_ids))
