"""A stack of modelled workers at a GPU's pace, orders to its scheduler, and requests whose every token is checked."""

from __future__ import annotations

import itertools
import random
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as wire
from hyperflexis.scheduler.v1 import scheduler_service_pb2_grpc, worker_session_pb2
from hyperflexis_cli.cluster import find_leader
from hyperflexis_cli.stack import LocalStack
from hyperflexis_client import AsyncClient, Delta, Finished, Sampling, Verdict
from hyperflexis_common.channel import open_channel
from hyperflexis_worker.modelled import reference_tokens

PROFILE = "h200/llama-3.1-8b/tp1"
VOCAB = 32_000
Role: TypeAlias = capability_pb2.Role.ValueType
TIERS = [
    {"name": "chat", "ttft_ms": 500, "tpot_ms": 50, "on_violation": "refuse"},
    {"name": "summarise", "ttft_ms": 8_000, "tpot_ms": 120, "on_violation": "refuse"},
]


def document(workers: int, scheduler: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A stack of modelled workers, each as slow as an H200 with an 8B model. `scheduler`: further settings of it."""
    return {
        "models": [{"name": "m", "context_length": 32_768, "vocab_size": VOCAB}],
        "tiers": TIERS,
        "router": {"default_tier": "chat"},
        "scheduler": dict(scheduler or {}),
        "worker": {
            "engine": "modelled",
            "engine_mode": "process",
            "profile": PROFILE,
            "num_blocks": 16_384,
            "max_num_tokens": 8_192,
            "max_num_seqs": 256,
        },
        "stack": {"engine": "modelled", "workers": workers, "routers": 1, "schedulers": 1},
    }


@dataclass
class Reading:
    """What a client saw of one request."""

    request_id: str = ""
    tokens: list[int] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    """[len(tokens)] When each came."""
    sent_s: float = 0.0
    verdict: Verdict | None = None

    @property
    def ttft_ms(self) -> float:
        return (self.at_s[0] - self.sent_s) * 1e3

    @property
    def gaps_ms(self) -> list[float]:
        return [(after - before) * 1e3 for before, after in itertools.pairwise(sorted(set(self.at_s)))]


class LiveCell:
    """A running stack: its leader, and its router."""

    def __init__(self, stack: LocalStack, scheduler: scheduler_service_pb2_grpc.SchedulerServiceAsyncStub) -> None:
        self._client = AsyncClient(stack.routers)
        self._scheduler = scheduler

    async def close(self) -> None:
        await self._client.close()

    async def workers(self) -> list[str]:
        call = self._scheduler.WatchCluster(wire.WatchClusterRequest(), timeout=5)
        seen = await call.read()
        call.cancel()
        assert isinstance(seen, wire.WatchClusterResponse)
        return sorted(worker.identity.worker_id for worker in seen.workers)

    async def apply(self, **action: Any) -> None:
        request = wire.ApplyRequest(action_id=secrets.token_hex(8), **action)
        await self._scheduler.Apply(request, timeout=5)

    async def set_role(self, worker: str, role: Role) -> float:
        """Milliseconds until nothing is sent to it any more that its role forbids."""
        began = time.perf_counter()
        await self.apply(worker_id=worker, set_role=worker_session_pb2.SetRole(role=role))
        return (time.perf_counter() - began) * 1e3

    async def read(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        seed: int,
        tier: str = "chat",
        reading: Reading | None = None,
        check: bool = True,
    ) -> Reading:
        """`reading` is filled as it comes. `check`: every token; it takes a while for long prompts."""
        reading = reading or Reading()
        reading.sent_s = time.perf_counter()
        sampling = Sampling(max_tokens=max_tokens, seed=seed, ignore_eos=True)
        async for event in self._client.generate("m", list(prompt), sampling=sampling, tier=tier):
            reading.request_id = reading.request_id or getattr(event, "request_id", "")
            if isinstance(event, Delta):
                reading.tokens += event.token_ids
                reading.at_s += [time.perf_counter()] * len(event.token_ids)
            elif isinstance(event, Finished):
                reading.verdict = event.verdict
        if check:
            wanted = reference_tokens(prompt, seed, len(reading.tokens), VOCAB)
            assert reading.tokens == wanted, f"{reading.request_id}: other tokens than an undisturbed run"
        return reading

    async def told(self, request_id: str, kind: str) -> list[dict[str, float]]:
        """Numbers of the decisions of a kind that the scheduler keeps."""
        details = await self._client.get_request(request_id)
        return [dict(decision.numbers) for decision in details.decisions if decision.kind == kind]


@asynccontextmanager
async def live_cell(workers: int, scheduler: Mapping[str, Any] | None = None) -> AsyncIterator[LiveCell]:
    async with LocalStack(document(workers, scheduler), free_router_port=True) as stack:
        await stack.wait_for_workers()
        leader = await find_leader(stack.schedulers)
        assert leader is not None, "workers are ready, so somebody leads"
        async with open_channel(leader) as channel:
            running = LiveCell(stack, scheduler_service_pb2_grpc.SchedulerServiceStub(channel))
            try:
                yield running
            finally:
                await running.close()


def prompt_of(tokens: int, seed: int) -> list[int]:
    chance = random.Random(seed)
    return [chance.randrange(VOCAB) for _ in range(tokens)]
