"""A whole worker, shell and engine process, between a scheduler and a router that only record and command."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from hyperflexis.common.v1 import capability_pb2, identity_pb2, slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis.scheduler.v1 import scheduler_service_pb2_grpc
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis.worker.v1 import worker_service_pb2_grpc
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.channel import open_channel
from hyperflexis_common.config import ModelSettings
from hyperflexis_common.tokens import pack, unpack
from hyperflexis_worker.app import Worker
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.modelled import reference_tokens

PROMPT = [1, 2, 3]
Update = ws.RequestUpdate


class FakeScheduler(scheduler_service_pb2_grpc.SchedulerServiceServicer):
    """One leader: registers whoever comes, unless told to refuse, and sends what the test wants sent."""

    def __init__(self) -> None:
        self.answer: ws.WorkerSessionResponse | None = None
        self.dials = 0
        self.updates: list[ws.RequestUpdate] = []
        self.report = ws.Report()
        self._context: Any = None
        self._seq = 0

    async def start(self) -> str:
        self._server = grpc.aio.server()
        scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self.address

    async def stop(self) -> None:
        await self._server.stop(0)

    async def WorkerSession(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        self.dials += 1
        await context.read()
        if self.answer is not None:
            await context.write(self.answer)
            return
        self._context, self._seq = context, 0
        fence = identity_pb2.Fence(epoch=1, leader_id="fake")
        registered = ws.Registered(fence=fence, report_interval_us=200_000)
        await context.write(ws.WorkerSessionResponse(epoch=1, registered=registered))
        while (message := await context.read()) is not grpc.aio.EOF:
            if message.WhichOneof("message") == "report":
                self.report = message.report
                self.updates += message.report.updates

    async def send(self, **command: Any) -> None:
        self._seq += 1
        await self._context.write(ws.WorkerSessionResponse(epoch=1, seq=self._seq, **command))

    async def run(self, request_id: str, seq: int) -> None:
        slo = slo_pb2.Slo(tier="chat", ttft_us=10**6, tpot_us=10**6)
        attempt = Attempt(1, seq).proto()
        await self.send(run=ws.Run(request_id=request_id, attempt=attempt, prompt_tokens=3, max_tokens=200, slo=slo))

    def kinds(self, request_id: str) -> list[int]:
        return [update.kind for update in self.updates if update.request_id == request_id]


class FakeRouter:
    """One feed, and the tokens that came over it."""

    def __init__(self, address: str) -> None:
        self.channel = open_channel(address)
        self.call = worker_service_pb2_grpc.WorkerServiceStub(self.channel).TokenFeed()
        self.tokens: dict[str, list[int]] = {}
        self.gone: list[str] = []
        self._slots: dict[int, str] = {}

    async def open(self, **hello: Any) -> None:
        fields = {"router_id": "r", "protocol_version": PROTOCOL_VERSION, **hello}
        await self.call.write(tf.TokenFeedRequest(hello=tf.FeedHello(**fields)))
        assert (await self.call.read()).HasField("welcome")
        self._reader = asyncio.create_task(self._read())

    async def start(self, request_id: str, seq: int) -> None:
        start = tf.Start(request_id=request_id, attempt=Attempt(1, seq).proto(), prompt=pack(PROMPT), max_tokens=200)
        start.sampling.seed = 5
        await self.call.write(tf.TokenFeedRequest(start=start))

    async def _read(self) -> None:
        while (message := await self.call.read()) is not grpc.aio.EOF:
            if message.HasField("bind"):
                self._slots[message.bind.slot] = message.bind.request_id
            elif message.HasField("gone"):
                self.gone.append(message.gone.request_id)
            elif message.HasField("step"):
                tokens = unpack(message.step.tokens)
                for slot, count in zip(unpack(message.step.slots), unpack(message.step.counts), strict=True):
                    self.tokens.setdefault(self._slots[slot], []).extend(tokens[:count])
                    del tokens[:count]

    async def close(self) -> None:
        self.call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self.channel.close()


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    scheduler = FakeScheduler()
    await scheduler.start()
    yield scheduler
    await scheduler.stop()


def settings(*schedulers: str, time_scale: float = 5.0) -> WorkerSettings:
    return WorkerSettings(
        listen="127.0.0.1:0",
        schedulers=list(schedulers),
        models=[ModelSettings(name="m", vocab_size=1_000, context_length=512)],
        engine="modelled",
        profile="test/tiny/tp1",
        time_scale=time_scale,
        stop_grace_s=0.5,
    )


async def eventually(condition: Callable[[], Any], limit_s: float = 15.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
async def worker(scheduler: FakeScheduler) -> AsyncIterator[tuple[Worker, str]]:
    worker = Worker(settings(scheduler.address), CollectorRegistry())
    address = await worker.start()
    await eventually(lambda: scheduler._context is not None)
    yield worker, address
    await worker.close()


async def test_a_request_runs_to_its_end(scheduler: FakeScheduler, worker: tuple[Worker, str]) -> None:
    router = FakeRouter(worker[1])
    await router.open()
    await scheduler.run("q", 1)
    await router.start("q", 1)
    await eventually(lambda: Update.KIND_FINISHED in scheduler.kinds("q"))
    await eventually(lambda: len(router.tokens.get("q", [])) == 200)
    assert router.tokens["q"] == reference_tokens(PROMPT, 5, 200, 1_000)
    assert scheduler.kinds("q") == [Update.KIND_STARTED, Update.KIND_FIRST_TOKEN, Update.KIND_FINISHED]
    await eventually(lambda: scheduler.report.load.running == 0)
    await router.close()


async def test_an_engine_killed_with_work_loses_it_at_once_and_the_next_one_serves(
    scheduler: FakeScheduler, worker: tuple[Worker, str]
) -> None:
    """Work that runs, work that is half here, and work that comes while no engine is there."""
    router = FakeRouter(worker[1])
    await router.open()
    await scheduler.run("runs", 1)
    await router.start("runs", 1)
    await eventually(lambda: router.tokens.get("runs"))
    await scheduler.run("half", 2)
    pid = worker[0]._shell._engine.pid
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: Update.KIND_LOST in scheduler.kinds("runs"))
    await router.start("half", 2)
    await scheduler.run("meanwhile", 3)
    await router.start("meanwhile", 3)
    await eventually(lambda: all(Update.KIND_LOST in scheduler.kinds(name) for name in ("half", "meanwhile")))
    await eventually(lambda: scheduler.report.readiness == capability_pb2.READINESS_READY)
    assert worker[0]._shell._engine.pid != pid
    await eventually(lambda: (scheduler.report.load.waiting, scheduler.report.load.running) == (0, 0))
    await scheduler.run("next", 4)
    await router.start("next", 4)
    await eventually(lambda: Update.KIND_FINISHED in scheduler.kinds("next"))
    assert {"runs", "meanwhile"} <= set(router.gone)
    await router.close()


async def test_standbys_that_name_each_other_are_not_stormed(scheduler: FakeScheduler) -> None:
    other = FakeScheduler()
    await other.start()
    for one, two in ((scheduler, other), (other, scheduler)):
        not_leader = rs.NotLeader(leader_address=two.address)
        one.answer = ws.WorkerSessionResponse(not_leader=not_leader)
    worker = Worker(settings(scheduler.address, other.address), CollectorRegistry())
    await worker.start()
    await asyncio.sleep(1.5)
    dials = scheduler.dials + other.dials
    scheduler.answer = None
    await eventually(lambda: scheduler._context is not None)
    await worker.close()
    await other.stop()
    assert 2 <= dials <= 20


async def test_a_worker_that_is_refused_for_good_leaves(scheduler: FakeScheduler) -> None:
    rejected = ws.Rejected(reason=ws.Rejected.REASON_INCARNATION, message="taken", permanent=True)
    scheduler.answer = ws.WorkerSessionResponse(epoch=1, rejected=rejected)
    worker = Worker(settings(scheduler.address), CollectorRegistry())
    await worker.start()
    assert await asyncio.wait_for(worker.serve(), 10) == 1


@pytest.mark.parametrize(
    ("hello", "code"),
    [
        ({"protocol_version": 99}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"expected": identity_pb2.WorkerIdentity(worker_id="x", incarnation=1)}, grpc.StatusCode.FAILED_PRECONDITION),
        (None, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_feed_that_is_meant_for_another_is_refused(
    worker: tuple[Worker, str], hello: dict[str, Any] | None, code: grpc.StatusCode
) -> None:
    async with open_channel(worker[1]) as channel:
        call = worker_service_pb2_grpc.WorkerServiceStub(channel).TokenFeed()
        if hello is None:
            await call.write(tf.TokenFeedRequest(closed=tf.Closed(request_ids=["q"])))
        else:
            fields = {"router_id": "r", "protocol_version": PROTOCOL_VERSION, **hello}
            await call.write(tf.TokenFeedRequest(hello=tf.FeedHello(**fields)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert caught.value.code() == code


async def test_a_draining_worker_ends_what_runs_and_takes_nothing_new(
    scheduler: FakeScheduler, worker: tuple[Worker, str]
) -> None:
    router = FakeRouter(worker[1])
    await router.open()
    await scheduler.run("runs", 1)
    await router.start("runs", 1)
    await eventually(lambda: router.tokens.get("runs"))
    draining = asyncio.create_task(worker[0]._shell.drain(10.0))
    await eventually(lambda: scheduler.report.readiness == capability_pb2.READINESS_DRAINING)
    await scheduler.run("late", 2)
    await eventually(lambda: scheduler.kinds("late") == [Update.KIND_REJECTED])
    await draining
    assert Update.KIND_FINISHED in scheduler.kinds("runs") or len(router.tokens["runs"]) == 200
    await router.close()
