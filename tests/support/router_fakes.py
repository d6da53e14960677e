"""A scheduler and a worker that speak the protocol to a router in-process."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any

from hyperflexis.common.v1 import capability_pb2, identity_pb2, sampling_pb2
from hyperflexis.scheduler.v1 import router_session_pb2, scheduler_service_pb2, scheduler_service_pb2_grpc
from hyperflexis.worker.v1 import token_feed_pb2, worker_service_pb2_grpc
from hyperflexis_common.attempt import Attempt, WorkerKey
from hyperflexis_common.outbox import Outbox
from hyperflexis_common.tokens import extend_crc, pack, unpack

WORKER = WorkerKey("w", 7)


def model_token(prompt: list[int], output: list[int]) -> int:
    """The next token is a function of everything before it."""
    return zlib.crc32(pack([*prompt, 1_000_000, *output])) % 250


class FakeScheduler(scheduler_service_pb2_grpc.SchedulerServiceServicer):
    """Places every request on the one worker, unless told to refuse or to hold."""

    def __init__(self, worker_address: str) -> None:
        self._worker_address = worker_address
        self.seq = 0
        self.placed: dict[str, Attempt] = {}
        self.cancelled: list[str] = []
        self.done: list[str] = []
        self.submits: list[router_session_pb2.Submit] = []
        self.refuse: router_session_pb2.Refused | None = None
        self.hold = False
        self.sessions: list[Outbox[router_session_pb2.RouterSessionResponse]] = []

    async def RouterSession(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        outbox: Outbox[router_session_pb2.RouterSessionResponse] = Outbox()
        self.sessions.append(outbox)
        reader = asyncio.create_task(self._read(requests, outbox))
        try:
            async for message in outbox:
                yield message
        finally:
            reader.cancel()
            self.sessions.remove(outbox)

    async def ExplainRequest(self, request: Any, context: Any) -> Any:
        response = scheduler_service_pb2.ExplainRequestResponse()
        response.decisions.add(kind="place", reason="only_one")
        return response

    async def _read(self, requests: Any, outbox: Outbox[router_session_pb2.RouterSessionResponse]) -> None:
        async for message in requests:
            kind = message.WhichOneof("message")
            if kind == "hello":
                fence = identity_pb2.Fence(epoch=1, leader_id="s")
                outbox.put(_down(welcome=router_session_pb2.RouterWelcome(fence=fence, protocol_version=1)))
                entry = router_session_pb2.WorkerEntry(
                    identity=WORKER.proto(),
                    address=self._worker_address,
                    model="ids",
                    readiness=capability_pb2.READINESS_READY,
                )
                outbox.put(_down(workers=router_session_pb2.WorkerList(full=True, workers=[entry])))
            elif kind == "submit":
                self.submits.append(message.submit)
                self._answer(message.submit, outbox)
            elif kind == "cancel":
                self.cancelled.append(message.cancel.request_id)
            elif kind == "done":
                self.done += message.done.request_ids

    def _answer(self, submit: router_session_pb2.Submit, outbox: Outbox[Any]) -> None:
        request_id = submit.request_id
        if self.refuse is not None:
            self.refuse.request_id = request_id
            outbox.put(_down(refused=self.refuse))
            return
        if self.hold:
            outbox.put(_down(queued=router_session_pb2.Queued(request_id=request_id)))
            return
        started = request_id in self.placed and not submit.last_attempt_failed
        if not started:
            self.seq += 1
            self.placed[request_id] = Attempt(1, self.seq)
        placed = router_session_pb2.Placed(
            request_id=request_id,
            attempt=self.placed[request_id].proto(),
            worker=WORKER.proto(),
            base_index=submit.committed_tokens,
            started=started,
        )
        outbox.put(_down(placed=placed))


def _down(**message: Any) -> router_session_pb2.RouterSessionResponse:
    return router_session_pb2.RouterSessionResponse(epoch=1, **message)


class FakeWorker(worker_service_pb2_grpc.WorkerServiceServicer):
    """Makes a token each `pace_s`, the newest Start or Subscribe owning the stream."""

    def __init__(self) -> None:
        self.pace_s = 0.001
        self.end_at: int | None = None
        self.closed: list[str] = []
        self.outputs: dict[str, tuple[list[int], list[int], int]] = {}
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self._slots = 0

    async def TokenFeed(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        outbox: Outbox[token_feed_pb2.TokenFeedResponse] = Outbox()
        reader = asyncio.create_task(self._read(requests, outbox))
        try:
            async for message in outbox:
                yield message
        finally:
            reader.cancel()
            outbox.close()

    async def _read(self, requests: Any, outbox: Outbox[token_feed_pb2.TokenFeedResponse]) -> None:
        async for message in requests:
            kind = message.WhichOneof("message")
            if kind == "hello":
                welcome = token_feed_pb2.FeedWelcome(identity=WORKER.proto(), protocol_version=1)
                outbox.put(token_feed_pb2.TokenFeedResponse(welcome=welcome))
            elif kind == "start":
                start = message.start
                self.outputs[start.request_id] = (unpack(start.prompt), unpack(start.committed), start.max_tokens)
                self._pump(start.request_id, start.attempt, len(start.committed) // 4, outbox)
            elif kind == "subscribe":
                subscribe = message.subscribe
                if subscribe.request_id in self.outputs:
                    self._pump(subscribe.request_id, subscribe.attempt, subscribe.next_index, outbox)
                else:
                    gone = token_feed_pb2.Gone(request_id=subscribe.request_id, attempt=subscribe.attempt)
                    outbox.put(token_feed_pb2.TokenFeedResponse(gone=gone))
            elif kind == "closed":
                for request_id in message.closed.request_ids:
                    self.closed.append(request_id)
                    self.outputs.pop(request_id, None)
                    if (pump := self._pumps.pop(request_id, None)) is not None:
                        pump.cancel()

    def _pump(self, request_id: str, attempt: identity_pb2.Attempt, index: int, outbox: Outbox[Any]) -> None:
        if (old := self._pumps.pop(request_id, None)) is not None:
            old.cancel()
        self._slots += 1
        bind = token_feed_pb2.Bind(slot=self._slots, request_id=request_id, attempt=attempt)
        outbox.put(token_feed_pb2.TokenFeedResponse(bind=bind))
        self._pumps[request_id] = asyncio.create_task(self._generate(request_id, self._slots, index, outbox))

    async def _generate(self, request_id: str, slot: int, sent: int, outbox: Outbox[Any]) -> None:
        prompt, output, max_tokens = self.outputs[request_id]
        end = max_tokens if self.end_at is None else min(max_tokens, self.end_at)
        while True:
            if sent < len(output):
                step = token_feed_pb2.StepTokens(
                    slots=pack([slot]),
                    start_index=pack([sent]),
                    counts=pack([len(output) - sent]),
                    crc=pack([extend_crc(0, pack(output))]),
                    tokens=pack(output[sent:]),
                )
                sent = len(output)
                outbox.put(token_feed_pb2.TokenFeedResponse(step=step))
            if len(output) >= end:
                break
            await asyncio.sleep(self.pace_s)
            output.append(model_token(prompt, output))
        finish = token_feed_pb2.AttemptFinished(
            slot=slot,
            reason=sampling_pb2.FINISH_REASON_LENGTH,
            output_tokens=len(output),
            crc=extend_crc(0, pack(output)),
        )
        outbox.put(token_feed_pb2.TokenFeedResponse(step=token_feed_pb2.StepTokens(finished=[finish])))

    async def stop(self) -> None:
        for pump in self._pumps.values():
            pump.cancel()
        await asyncio.gather(*self._pumps.values(), return_exceptions=True)


class Cell:
    """The fakes, served."""

    def __init__(self, scheduler: FakeScheduler, worker: FakeWorker, address: str) -> None:
        self.scheduler = scheduler
        self.worker = worker
        self.address = address
