"""The worker's gRPC face: the token feed for routers, moves for other workers. Weight calls answer UNIMPLEMENTED until
that plane exists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from hyperflexis.worker.v1 import token_feed_pb2, worker_service_pb2, worker_service_pb2_grpc
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.first_message import FIRST_MESSAGE_S
from hyperflexis_common.outbox import Outbox
from hyperflexis_common.server import cancel_all
from hyperflexis_worker.moving import Refused
from hyperflexis_worker.shell import Shell

Requests = AsyncIterator[token_feed_pb2.TokenFeedRequest]
Context = grpc.aio.ServicerContext[token_feed_pb2.TokenFeedRequest, token_feed_pb2.TokenFeedResponse]


class WorkerService(worker_service_pb2_grpc.WorkerServiceServicer):
    def __init__(self, shell: Shell, key: WorkerKey) -> None:
        self._shell = shell
        self._key = key

    async def TokenFeed(
        self, request_iterator: Requests, context: Context
    ) -> AsyncIterator[token_feed_pb2.TokenFeedResponse]:
        hello = await self._hello(request_iterator, context)
        feed, outbox = self._shell.open_feed(hello)
        reader = asyncio.create_task(self._read(feed, request_iterator, outbox))
        try:
            async for message in outbox:
                yield message
        finally:
            # First the task, then the core: no message of this feed may come after its end.
            await cancel_all(reader)
            self._shell.close_feed(feed)
        if outbox.was_cut:
            reason = "the feed was read too slowly; open it again and Subscribe to what is missing"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, reason)

    async def _hello(self, requests: Requests, context: Context) -> token_feed_pb2.FeedHello:
        try:
            async with asyncio.timeout(FIRST_MESSAGE_S):
                first = await anext(requests, None)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no FeedHello came within {FIRST_MESSAGE_S:g} s")
        if first is None or first.WhichOneof("message") != "hello":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message of a feed must be a FeedHello")
            raise AssertionError("abort raises")
        hello = first.hello
        if hello.protocol_version != PROTOCOL_VERSION:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this worker speaks protocol {PROTOCOL_VERSION}, the router {hello.protocol_version}",
            )
        if hello.HasField("expected") and WorkerKey.of(hello.expected) != self._key:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this is {self._key}, not the worker expected")
        return hello

    async def _read(self, feed: int, requests: Requests, outbox: Outbox[token_feed_pb2.TokenFeedResponse]) -> None:
        try:
            async for message in requests:
                self._shell.feed_message(feed, message)
        finally:
            # The router half-closed or went: its feed is over.
            outbox.close()

    async def Link(self, request_iterator: Any, context: Any) -> AsyncIterator[worker_service_pb2.LinkResponse]:
        async for _ in request_iterator:
            try:
                yield self._shell.moving.link_asked()
            except Refused as error:
                await context.abort(error.code, str(error))

    async def ExportKv(
        self, request: worker_service_pb2.ExportKvRequest, context: Any
    ) -> worker_service_pb2.ExportKvResponse:
        try:
            return await self._shell.moving.export_asked(request)
        except Refused as error:
            await context.abort(error.code, str(error))
            raise AssertionError("abort raises") from None

    async def ExportPrefix(
        self, request: worker_service_pb2.ExportPrefixRequest, context: Any
    ) -> worker_service_pb2.ExportPrefixResponse:
        try:
            return await self._shell.moving.prefix_asked(request)
        except Refused as error:
            await context.abort(error.code, str(error))
            raise AssertionError("abort raises") from None

    async def ReadKv(
        self, request: worker_service_pb2.ReadKvRequest, context: Any
    ) -> AsyncIterator[worker_service_pb2.ReadKvResponse]:
        try:
            async for response in self._shell.moving.read_asked(request):
                yield response
        except Refused as error:
            await context.abort(error.code, str(error))

    async def ReleaseKv(
        self, request: worker_service_pb2.ReleaseKvRequest, context: Any
    ) -> worker_service_pb2.ReleaseKvResponse:
        try:
            return worker_service_pb2.ReleaseKvResponse(held=await self._shell.moving.release_asked(request.lease_id))
        except Refused as error:
            await context.abort(error.code, str(error))
            raise AssertionError("abort raises") from None

    async def GetWeightManifest(
        self, request: worker_service_pb2.GetWeightManifestRequest, context: Any
    ) -> worker_service_pb2.GetWeightManifestResponse:
        await _not_here(context, "weight transfer")
        return worker_service_pb2.GetWeightManifestResponse()

    async def ReadWeights(
        self, request: worker_service_pb2.ReadWeightsRequest, context: Any
    ) -> AsyncIterator[worker_service_pb2.ReadWeightsResponse]:
        await _not_here(context, "weight transfer")
        yield worker_service_pb2.ReadWeightsResponse()


async def _not_here(context: Any, what: str) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"this worker's engine has no {what} (see its capabilities)")
