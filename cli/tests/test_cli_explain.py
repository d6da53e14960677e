"""What became of requests on a real stack, explained: refused, downgraded, best effort, moved by a second try."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from random import Random

import pytest

from hyperflexis_cli.stack import LocalStack
from hyperflexis_cli.timeline import timeline, verdict_lines
from hyperflexis_client import AsyncClient, AsyncGeneration, NoticeKind, RequestDetails, Sampling

pytestmark = [
    pytest.mark.skipif(
        not all(importlib.util.find_spec(f"hyperflexis_{service}") for service in ("router", "scheduler", "worker")),
        reason="the services are not installed",
    ),
    pytest.mark.slow,
]
DOCUMENT = {
    "models": [{"name": "tiny", "context_length": 2048, "vocab_size": 2048}],
    "tiers": [
        {"name": "chat", "ttft_ms": 1_500, "tpot_ms": 50, "on_violation": "refuse"},
        {"name": "now", "ttft_ms": 60, "tpot_ms": 50, "on_violation": "refuse"},
        {"name": "hasty", "ttft_ms": 60, "tpot_ms": 50, "on_violation": "downgrade:patient"},
        {"name": "hopeful", "ttft_ms": 60, "tpot_ms": 50, "on_violation": "best_effort"},
        {"name": "patient", "ttft_ms": 60_000, "tpot_ms": 1_000},
    ],
    # Not by load: the busy worker must get what it cannot do.
    "scheduler": {"policy": "round_robin"},
    "worker": {"engine_mode": "thread", "time_scale": 3.0, "prefix_cache": False},
}
LONG = 1_600
"""Prompt tokens: 0.85 s of prefill here, so that two of them are too many for a first token within 1.5 s."""


async def generate(client: AsyncClient, tier: str, prompt: int, output: int) -> AsyncGeneration:
    tokens = Random(prompt).choices(range(2048), k=prompt)
    sampling = Sampling(max_tokens=output, ignore_eos=True)
    generation = client.generate("tiny", tokens, sampling=sampling, tier=tier, return_text=False)
    async for _ in generation:
        pass
    return generation


async def explained(client: AsyncClient, generation: AsyncGeneration) -> tuple[RequestDetails, list[str]]:
    await asyncio.sleep(0.1)  # the worker's report of the end
    assert generation.request_id is not None
    details = await client.get_request(generation.request_id)
    return details, [moment.told for moment in timeline(details)]


def kinds(details: RequestDetails) -> list[str]:
    return [decision.kind for decision in details.decisions]


async def test_refused_downgraded_best_effort_and_moved_requests_are_explained(tmp_path: Path) -> None:
    stack = LocalStack(DOCUMENT, tmp_path / "run", free_router_port=True, engine="modelled", workers=2)
    async with stack, AsyncClient(stack.routers) as client:
        await stack.wait_for_workers(timeout_s=40)
        # One on each: until a worker has told how long its steps take, the scheduler guesses.
        await asyncio.gather(*(generate(client, "patient", 20, 80) for _ in range(2)))
        await _refused(client)
        await _downgraded(client)
        await _best_effort(client)
        await _moved(client)


async def _refused(client: AsyncClient) -> None:
    details, lines = await explained(client, await generate(client, "now", LONG, 3))
    assert kinds(details) == ["place", "gave_up", "refuse"], lines
    assert "nothing came of it" in lines[1] and "first token predicted after" in lines[1]
    assert "given up by tiny-" in lines[2] and "it could not be in time even if it came next" in lines[2]
    assert lines[3] == "refused: its promise cannot be kept"
    assert "promised are 60; try again after" in lines[4]
    assert verdict_lines(details)[1] == "  first token: none came, promised 60.0 ms"


async def _downgraded(client: AsyncClient) -> None:
    details, lines = await explained(client, await generate(client, "hasty", LONG, 3))
    expected = ["place", "gave_up", "downgrade", "place", "begin", "first_token", "finish"]
    assert kinds(details) == expected, lines
    assert details.promised is not None
    assert (details.promised.tier, details.slo.tier) == ("hasty", "patient")
    assert lines[3] == "downgraded to patient: its client was told"
    assert "under its new promise" in lines[4] and "— it came after" in lines[4]
    assert verdict_lines(details)[-1] == "  downgraded to patient on the way: never counted as attained"


async def _best_effort(client: AsyncClient) -> None:
    generation = await generate(client, "hopeful", LONG, 3)
    notice = generation.notices[0]
    assert (notice.kind, notice.slo) == (NoticeKind.BEST_EFFORT, None)
    assert "the promise of hopeful cannot be kept: its first token was predicted after" in notice.message
    details, lines = await explained(client, generation)
    expected = ["place", "gave_up", "best_effort", "place", "begin", "first_token", "finish"]
    assert kinds(details) == expected, lines
    assert lines[3] == "its promise as hopeful is given up: its client was told"
    assert "behind all that still have a promise" in lines[4] and "— it came after" in lines[4]


async def _moved(client: AsyncClient) -> None:
    busy = asyncio.create_task(generate(client, "chat", LONG, 3))
    await asyncio.sleep(0.05)
    # Decodes, so that its worker is not idle: work would be called back for it before anybody is given up.
    beside = asyncio.create_task(generate(client, "patient", 20, 200))
    await asyncio.sleep(0.05)
    details, lines = await explained(client, await generate(client, "chat", LONG, 3))
    await asyncio.gather(busy, beside)
    assert kinds(details) == ["place", "gave_up", "place", "begin", "first_token", "finish"], (lines, details.decisions)
    first, _, second = details.decisions[:3]
    assert (second.reason, second.worker_id != first.worker_id) == ("second_try", True)
    assert first.numbers["requests"] == 1 and first.numbers["queued_prefill_us"] > 0
    assert "to be in time itself it would have made others late; first token predicted after" in lines[2]
    assert "a second try: there it could still be in time" in lines[3] and "— it came after" in lines[3]
    assert verdict_lines(details)[0].endswith("promised as chat")
