"""A whole worker between a scheduler and a router that only record and command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from hyperflexis.common.v1 import identity_pb2, slo_pb2
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
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.modelled import reference_tokens

PROMPT = [1, 2, 3]
LENGTH = 200
SEED = 5
VOCAB = 1_000
REFERENCE = reference_tokens(PROMPT, SEED, LENGTH, VOCAB)


class FakeScheduler(scheduler_service_pb2_grpc.SchedulerServiceServicer):
    """One leader: registers whoever comes, unless told to answer otherwise, and sends what the test wants sent."""

    def __init__(self) -> None:
        self.answer: ws.WorkerSessionResponse | None = None
        self.dials = 0
        self.sessions = 0
        self.lost_registered = 0
        """How many of the next sessions never hear that they are registered."""
        self.updates: list[ws.RequestUpdate] = []
        self.pongs: list[int] = []
        self.report = ws.Report()
        self.report_seqs: list[int] = []
        """Of the last session."""
        self.address = ""
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

    def names(self, other: FakeScheduler) -> None:
        """It does not lead; `other` does, as far as it knows."""
        self.answer = ws.WorkerSessionResponse(not_leader=rs.NotLeader(leader_address=other.address))

    async def WorkerSession(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        self.dials += 1
        await context.read()
        if self.answer is not None:
            await context.write(self.answer)
            return
        if self.lost_registered:
            self.lost_registered -= 1
            while not context.done():
                await context.write(ws.WorkerSessionResponse(epoch=1, ping=rs.Ping(id=1)))
                await asyncio.sleep(0.2)
            return
        self.report_seqs = []
        fence = identity_pb2.Fence(epoch=1, leader_id="fake")
        registered = ws.Registered(fence=fence, report_interval_us=200_000)
        await context.write(ws.WorkerSessionResponse(epoch=1, registered=registered))
        # Only now: who waits for a session writes next, and a stream takes one write at a time.
        self._context, self._seq = context, 0
        self.sessions += 1
        while (message := await context.read()) is not grpc.aio.EOF:
            if message.HasField("report"):
                self.report = message.report
                self.report_seqs.append(message.report.report_seq)
                self.updates += message.report.updates
            elif message.HasField("pong"):
                self.pongs.append(message.pong.id)

    async def send(self, **command: Any) -> None:
        """Over the session that is open, or the next one: a worker that got no time for seconds dials again."""
        await eventually(lambda: not self._context.done())
        self._seq += 1
        await self._context.write(ws.WorkerSessionResponse(epoch=1, seq=self._seq, **command))

    async def ping(self, number: int) -> None:
        await self._context.write(ws.WorkerSessionResponse(epoch=1, ping=rs.Ping(id=number)))

    async def run(self, request_id: str, seq: int) -> None:
        slo = slo_pb2.Slo(tier="chat", ttft_us=10**6, tpot_us=10**6)
        attempt = Attempt(1, seq).proto()
        run = ws.Run(request_id=request_id, attempt=attempt, prompt_tokens=len(PROMPT), max_tokens=LENGTH, slo=slo)
        await self.send(run=run)

    def kinds(self, request_id: str) -> list[int]:
        return [update.kind for update in self.updates if update.request_id == request_id]


class FakeRouter:
    """One feed, and the tokens that came over it, each at the index that was due."""

    def __init__(self, address: str) -> None:
        self.channel = open_channel(address)
        self.call = worker_service_pb2_grpc.WorkerServiceStub(self.channel).TokenFeed()
        self.tokens: dict[str, list[int]] = {}
        self.gone: list[str] = []
        self.finished: list[str] = []
        self._slots: dict[int, str] = {}
        self._reader: asyncio.Task[None] | None = None

    async def open(self, **hello: Any) -> None:
        fields = {"router_id": "r", "protocol_version": PROTOCOL_VERSION, **hello}
        await self.call.write(tf.TokenFeedRequest(hello=tf.FeedHello(**fields)))
        message = await self.call.read()
        assert isinstance(message, tf.TokenFeedResponse) and message.HasField("welcome")

    def listen(self) -> None:
        """From now on it reads; until then it is a slow router."""
        self._reader = asyncio.create_task(self._read())

    async def start(self, request_id: str, seq: int) -> None:
        start = tf.Start(request_id=request_id, attempt=Attempt(1, seq).proto(), prompt=pack(PROMPT), max_tokens=LENGTH)
        start.sampling.seed = SEED
        await self.call.write(tf.TokenFeedRequest(start=start))

    async def subscribe(self, request_id: str, seq: int, next_index: int = 0) -> None:
        subscribe = tf.Subscribe(request_id=request_id, attempt=Attempt(1, seq).proto(), next_index=next_index)
        await self.call.write(tf.TokenFeedRequest(subscribe=subscribe))

    async def ended(self) -> grpc.StatusCode:
        """Reads to the end."""
        if self._reader is None:
            self.listen()
        assert self._reader is not None
        await asyncio.gather(self._reader, return_exceptions=True)
        return await self.call.code()

    async def _read(self) -> None:
        while (message := await self.call.read()) is not grpc.aio.EOF:
            assert isinstance(message, tf.TokenFeedResponse)
            if message.HasField("bind"):
                self._slots[message.bind.slot] = message.bind.request_id
            elif message.HasField("gone"):
                self.gone.append(message.gone.request_id)
            elif message.HasField("step"):
                self._step(message.step)

    def _step(self, step: tf.StepTokens) -> None:
        tokens = unpack(step.tokens)
        for slot, start, count in zip(unpack(step.slots), unpack(step.start_index), unpack(step.counts), strict=True):
            mine = self.tokens.setdefault(self._slots[slot], [])
            if start <= len(mine):
                mine[start:] = tokens[:count]
            del tokens[:count]
        self.finished += [self._slots[finished.slot] for finished in step.finished]

    async def close(self) -> None:
        self.call.cancel()
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        await self.channel.close()


def worker_settings(*schedulers: str, **values: Any) -> WorkerSettings:
    """A modelled engine, a millisecond or so a step unless `time_scale` says otherwise."""
    defaults = {
        "listen": "127.0.0.1:0",
        "schedulers": list(schedulers),
        "models": [ModelSettings(name="m", vocab_size=VOCAB, context_length=512)],
        "engine": "modelled",
        "profile": "test/tiny/tp1",
        "time_scale": 5.0,
        "stop_grace_s": 0.5,
    }
    return WorkerSettings(**{**defaults, **values})


async def eventually(condition: Callable[[], Any], limit_s: float = 15.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.02)
