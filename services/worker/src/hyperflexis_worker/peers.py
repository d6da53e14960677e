"""Calls to other workers. Each has a deadline; channels are kept, and are few."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator

import grpc.aio

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.worker.v1 import worker_service_pb2, worker_service_pb2_grpc
from hyperflexis_common import tokens as packing
from hyperflexis_common.channel import open_channel

ASK_S = 2.0
PREFIX_S = 0.5
"""The lease that it asks for has to be known long before it ends."""
LINK_S = 5.0
READ_S = 10.0
CHANNELS = 256
"""Open at once; beyond it the one used least recently is closed."""


class Peers:
    """By address. Calls raise grpc.aio.AioRpcError; how a peer says no is in worker_service.proto."""

    def __init__(self) -> None:
        self._channels: OrderedDict[str, grpc.aio.Channel] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    async def export(
        self, address: str, request: worker_service_pb2.ExportKvRequest
    ) -> worker_service_pb2.ExportKvResponse:
        response: worker_service_pb2.ExportKvResponse = await self._stub(address).ExportKv(request, timeout=ASK_S)
        return response

    async def export_prefix(
        self, address: str, request: worker_service_pb2.ExportPrefixRequest
    ) -> worker_service_pb2.ExportPrefixResponse:
        stub = self._stub(address)
        response: worker_service_pb2.ExportPrefixResponse = await stub.ExportPrefix(request, timeout=PREFIX_S)
        return response

    async def link(self, address: str, request: worker_service_pb2.LinkRequest) -> worker_service_pb2.LinkResponse:
        async def once() -> AsyncIterator[worker_service_pb2.LinkRequest]:
            yield request

        call = self._stub(address).Link(once(), timeout=LINK_S)
        async for response in call:
            call.cancel()
            return response
        return worker_service_pb2.LinkResponse()

    async def release(self, address: str, lease_id: int) -> bool:
        """Was the lease alive until then?"""
        request = worker_service_pb2.ReleaseKvRequest(lease_id=lease_id)
        response = await self._stub(address).ReleaseKv(request, timeout=ASK_S)
        return bool(response.held)

    async def read(self, address: str, lease_id: int, blocks: list[int]) -> bytes:
        part = movement_pb2.RankPart(block_ids=packing.pack(blocks))
        request = worker_service_pb2.ReadKvRequest(lease_id=lease_id, parts=[part])
        data = bytearray()
        async for response in self._stub(address).ReadKv(request, timeout=READ_S):
            data += response.data
        return bytes(data)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
        await asyncio.gather(*self._closing)

    def _stub(self, address: str) -> worker_service_pb2_grpc.WorkerServiceAsyncStub:
        channel = self._channels.pop(address, None) or open_channel(address)
        self._channels[address] = channel
        if len(self._channels) > CHANNELS:
            _, oldest = self._channels.popitem(last=False)
            task = asyncio.ensure_future(oldest.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        stub: worker_service_pb2_grpc.WorkerServiceAsyncStub = worker_service_pb2_grpc.WorkerServiceStub(channel)
        return stub
