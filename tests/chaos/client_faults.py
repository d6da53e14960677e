"""Clients that leave, cancel, resume twice or read slowly."""

from __future__ import annotations

import asyncio
import contextlib

from chaos import Chaos
from client_load import Load

from hyperflexis_client import AsyncClient, Delta, HyperFlexisError


async def two_resumes(chaos: Chaos) -> None:
    """A client leaves its stream; two others resume it on two routers at once. One of them gets every token."""
    load, prompt = chaos.load, chaos.load.prompt()
    generation = load.generation(prompt)
    received: list[int] = []
    try:
        async for event in generation:
            if isinstance(event, Delta):
                received += event.token_ids
                if len(received) >= 2:
                    break
        await generation.aclose()
        if generation.request_id is None or generation.finished is not None:
            load.tally.finished += 1
            return
        ends = await asyncio.gather(
            *(_resume(target, generation.request_id, list(received)) for target in chaos.cell.router_addresses()),
            return_exceptions=True,
        )
    except HyperFlexisError as error:
        load.tally.failed_requests += 1
        load.tally.failures.append(f"two_resumes: {error}")
        return
    complete = [tokens for tokens in ends if isinstance(tokens, list) and tuple(tokens) == prompt.reference]
    wrong = [t for t in ends if isinstance(t, list) and tuple(t) != prompt.reference[: len(t)]]
    load.tally.spliced += len(wrong)
    load.tally.resumed += 1
    if complete:
        load.tally.finished += 1
    else:
        load.tally.failed_requests += 1
        load.tally.failures.append(f"two_resumes: nobody got all of {generation.request_id}: {ends}"[:400])


async def _resume(target: str, request_id: str, received: list[int]) -> list[int]:
    async with AsyncClient(target) as client:
        tokens = list(received)
        generation = client.resume(request_id, next_index=len(received), tail=received, timeout_s=60)
        with contextlib.suppress(HyperFlexisError):  # the loser is told ABORTED
            async for event in generation:
                if isinstance(event, Delta):
                    tokens += event.token_ids
        return tokens


async def cancel_storm(chaos: Chaos) -> None:
    """Twenty requests, cancelled at once or a little later: some before their Run is there."""

    async def cancelled(load: Load) -> None:
        generation = load.generation(load.prompt())
        delay_s = chaos.chance.choice([0.0, 0.0, 0.01, 0.1])
        try:
            async for _ in generation:
                await asyncio.sleep(delay_s)
                break
            await generation.cancel()
        except HyperFlexisError as error:
            load.tally.failures.append(f"cancel: {error}")
        load.tally.cancelled += 1

    for _ in range(20):
        chaos.load.also(cancelled)


async def orphan(chaos: Chaos) -> None:
    """A client that leaves and never comes back: its request must end with its grace."""

    async def leaves(load: Load) -> None:
        generation = load.generation(load.prompt(), detach_grace_ms=chaos.chance.choice([0, 500]))
        with contextlib.suppress(HyperFlexisError):
            async for event in generation:
                if isinstance(event, Delta):
                    break
            await generation.aclose()
        load.tally.cancelled += 1

    for _ in range(3):
        chaos.load.also(leaves)


async def slow_reader(chaos: Chaos) -> None:
    chaos.load.also(lambda load: load.one(load.prompt(), pause_s=0.3))
