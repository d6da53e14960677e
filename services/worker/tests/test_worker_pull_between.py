"""Two whole workers, shells and engines: one reads over gRPC what the other's cache keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from worker_process_rig import SEED, VOCAB, FakeRouter, FakeScheduler, eventually, worker_settings

from hyperflexis.common.v1 import movement_pb2, slo_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.tokens import pack
from hyperflexis_worker.app import Worker
from hyperflexis_worker.modelled import reference_tokens

Update = ws.RequestUpdate
PROMPT = [token % VOCAB for token in range(7, 7 * 180, 7)]
COUNT = 20


class End:
    """One worker, and the scheduler and router that only it has."""

    def __init__(self, scheduler: FakeScheduler, registry: CollectorRegistry) -> None:
        self.scheduler = scheduler
        self.registry = registry
        settings = worker_settings(scheduler.address, kv_transports=["grpc"], engine_mode="thread", block_tokens=16)
        self.worker = Worker(settings, registry)

    async def start(self) -> None:
        self.router = FakeRouter(await self.worker.start())
        await self.router.open()
        self.router.listen()
        await eventually(lambda: self.scheduler.sessions)

    async def close(self) -> None:
        await self.router.close()
        await self.worker.close()
        await self.scheduler.stop()

    def ref(self, **changes: Any) -> movement_pb2.WorkerRef:
        key = self.worker.key
        values = {"worker_id": key.worker_id, "incarnation": key.incarnation, "address": self.worker.address}
        return movement_pb2.WorkerRef(**{**values, **changes})

    async def serve(self, name: str, source: movement_pb2.WorkerRef | None = None) -> dict[str, float]:
        """The numbers that its end is told with; the tokens must be right."""
        slo = slo_pb2.Slo(tier="chat", ttft_us=5_000_000, tpot_us=10**6)
        run = ws.Run(request_id=name, attempt=Attempt(1, 1).proto(), prompt_tokens=len(PROMPT), slo=slo)
        run.max_tokens = COUNT
        if source is not None:
            run.prefix_source.CopyFrom(ws.PrefixSource(worker=source, tokens=len(PROMPT)))
        await self.scheduler.send(run=run)
        start = tf.Start(request_id=name, attempt=run.attempt, prompt=pack(PROMPT), max_tokens=COUNT)
        start.sampling.seed = SEED
        await self.router.call.write(tf.TokenFeedRequest(start=start))
        await eventually(lambda: Update.KIND_FINISHED in self.scheduler.kinds(name) and name in self.router.finished)
        assert self.router.tokens[name] == reference_tokens(PROMPT, SEED, COUNT, VOCAB)
        (end,) = [u for u in self.scheduler.updates if (u.request_id, u.kind) == (name, Update.KIND_FINISHED)]
        return dict(end.decision.numbers)


@asynccontextmanager
async def two() -> AsyncIterator[tuple[End, End]]:
    ends = []
    for _ in range(2):
        scheduler = FakeScheduler()
        await scheduler.start()
        ends.append(End(scheduler, CollectorRegistry()))
        await ends[-1].start()
    try:
        yield ends[0], ends[1]
    finally:
        for end in ends:
            await end.close()


async def test_a_prefix_is_read_and_the_tokens_are_the_same() -> None:
    async with two() as (source, reader):
        assert "cached_tokens" not in await source.serve("first")
        told = await reader.serve("q", source.ref())
        assert (told["cached_tokens"], told["pulled_tokens"]) == (176, 176) and told["pull_us"] < 200_000
        value = reader.registry.get_sample_value("hyperflexis_worker_prefix_pulls_total", {"outcome": "read"})
        assert value == 1
        assert (await reader.serve("again"))["cached_tokens"] == 176
        await eventually(lambda: source.scheduler.report.load.kv.leased_blocks == 0)


@pytest.mark.parametrize("why", ["nothing there", "another life", "nobody there"])
async def test_whoever_cannot_read_it_computes_it(why: str) -> None:
    async with two() as (source, reader):
        if why != "nothing there":
            await source.serve("first")
        changes = {"another life": {"incarnation": 1}, "nobody there": {"address": "127.0.0.1:1"}}
        told = await reader.serve("q", source.ref(**changes.get(why, {})))
        assert "cached_tokens" not in told and "pulled_tokens" not in told and told["pull_us"] > 0
