"""One TokenFeed per worker: dialled as soon as the core asks for it, and again whenever it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import structlog

from hyperflexis.worker.v1 import token_feed_pb2, worker_service_pb2_grpc
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.channel import open_channel
from hyperflexis_common.outbox import Outbox, OutboxFull
from hyperflexis_common.server import cancel_all
from hyperflexis_router.backoff import Backoff
from hyperflexis_router.switchboard import Switchboard

log = structlog.get_logger(__name__)

WELCOME_TIMEOUT_S = 2.0


class Feeds:
    """The feeds by worker; one task each."""

    def __init__(self, board: Switchboard) -> None:
        self._board = board
        self._tasks: dict[WorkerKey, asyncio.Task[None]] = {}
        self._outboxes: dict[WorkerKey, Outbox[token_feed_pb2.TokenFeedRequest]] = {}
        # Closed feeds whose tasks are still ending: kept so that each is awaited.
        self._ending: set[asyncio.Task[None]] = set()

    def open(self, worker: WorkerKey, address: str) -> None:
        if worker not in self._tasks:
            self._tasks[worker] = asyncio.create_task(self._keep(worker, address), name=f"feed {worker}")

    def close(self, worker: WorkerKey) -> None:
        task = self._tasks.pop(worker, None)
        if task is not None:
            self._outboxes.pop(worker, None)
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()

    def send(self, worker: WorkerKey, message: token_feed_pb2.TokenFeedRequest) -> None:
        outbox = self._outboxes.get(worker)
        if outbox is None:
            return
        try:
            outbox.put(message)
        except OutboxFull:
            # The closed outbox ends the stream, and the next one begins with a Subscribe of everything.
            log.warning("worker reads too slowly", worker=str(worker))

    async def close_all(self) -> None:
        tasks = [*self._tasks.values(), *self._ending]
        self._tasks.clear()
        await cancel_all(*tasks)

    async def _keep(self, worker: WorkerKey, address: str) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._talk(worker, address, backoff)
            except grpc.aio.AioRpcError as error:
                log.info("feed ended", worker=str(worker), code=error.code().name)
            except ValueError as error:
                log.error("feed makes no sense", worker=str(worker), error=str(error))
            await asyncio.sleep(backoff.next_s())

    async def _talk(self, worker: WorkerKey, address: str, backoff: Backoff) -> None:
        outbox: Outbox[token_feed_pb2.TokenFeedRequest] = Outbox()
        hello = token_feed_pb2.FeedHello(
            router_id=self._board.core.router_id, protocol_version=PROTOCOL_VERSION, expected=worker.proto()
        )
        outbox.put(token_feed_pb2.TokenFeedRequest(hello=hello))
        async with open_channel(address) as channel:
            call = worker_service_pb2_grpc.WorkerServiceStub(channel).TokenFeed(aiter(outbox))
            try:
                await self._listen(worker, address, aiter(call), outbox, backoff)
            finally:
                outbox.close()
                call.cancel()

    async def _listen(
        self,
        worker: WorkerKey,
        address: str,
        messages: AsyncIterator[token_feed_pb2.TokenFeedResponse],
        outbox: Outbox[token_feed_pb2.TokenFeedRequest],
        backoff: Backoff,
    ) -> None:
        board = self._board
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                first = await anext(messages, None)
        except TimeoutError:
            return
        if first is None or not first.HasField("welcome"):
            return
        if WorkerKey.of(first.welcome.identity) != worker:
            raise ValueError(f"{address} is worker {WorkerKey.of(first.welcome.identity)}")
        self._outboxes[worker] = outbox
        backoff.succeeded()
        try:
            board.apply(board.core.feed_opened(worker, board.clock.now_us()))
            async for message in messages:
                board.apply(board.core.feed_message(worker, message, board.clock.now_us()))
        finally:
            if self._outboxes.get(worker) is outbox:
                del self._outboxes[worker]
                board.apply(board.core.feed_closed(worker, board.clock.now_us()))
