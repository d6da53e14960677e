"""The asyncio client's connections to its routers."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis_client._calls import CHANNEL_OPTIONS, UNARY_TIMEOUT_S, Options, stub_of
from hyperflexis_client._errors import HyperFlexisError, Unavailable, error_of
from hyperflexis_client._recovery import Recovery


class AsyncLink:
    """One channel per router, opened when first needed. A `turn` picks the router, round and round."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._turn = 0
        self._closed = False

    def recovery(self) -> Recovery:
        return Recovery(self._options.retry, len(self._options.targets), random.random)

    def next_turn(self) -> int:
        """Where a new request begins."""
        self._turn += 1
        return self._turn - 1

    def open(self, call: wire.GenerateRequest | wire.ResumeRequest, turn: int, timeout_s: float | None) -> Any:
        """Opens the stream of a Generate or a Resume."""
        method = "Generate" if isinstance(call, wire.GenerateRequest) else "Resume"
        stub = stub_of(self._channel(turn), method)
        return getattr(stub, method)(call, timeout=timeout_s, metadata=self._options.metadata)

    async def ask(self, method: str, request: Message, *, by_id: bool = False) -> Any:
        """One idempotent unary call, repeated on the next router while none is reachable.

        `by_id`: it names a request, which perhaps only one of the routers knows.
        """
        recovery = self.recovery()
        turn = self.next_turn()
        while True:
            call = getattr(stub_of(self._channel(turn), method), method)
            try:
                return await call(request, timeout=UNARY_TIMEOUT_S, metadata=self._options.metadata)
            except grpc.aio.AioRpcError as lost:
                error = typed(lost)
            await asyncio.sleep(recovery.delay_s(error, time.monotonic(), accepted=by_id))
            turn += 1

    async def cancel(self, request_id: str) -> bool:
        """Cancels a request; False = it had finished already."""
        reply = await self.ask("Cancel", wire.CancelRequest(request_id=request_id), by_id=True)
        return not reply.already_finished

    async def close(self) -> None:
        self._closed = True
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    def _channel(self, turn: int) -> grpc.aio.Channel:
        if self._closed:
            raise HyperFlexisError("the client is closed")
        target = self._options.targets[turn % len(self._options.targets)]
        if target not in self._channels:
            credentials = self._options.credentials
            self._channels[target] = (
                grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
                if credentials is None
                else grpc.aio.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
            )
        return self._channels[target]


async def next_message(call: Any) -> Any | None:
    """The next message of a stream; None at its end. Raises HyperFlexisError for an error status.

    A router that ends the stream with CANCELLED, as one that shuts down does, reads in grpc.aio now as an
    AioRpcError, now as a CancelledError that looks like this task's own. Only the latter is ours to obey.
    """
    task = asyncio.current_task()
    cancellations = task.cancelling() if task else 0
    try:
        message = await call.read()
    except grpc.aio.AioRpcError as lost:
        if lost.code() is grpc.StatusCode.CANCELLED:
            raise Unavailable("the router ended the stream", lost.code()) from lost
        raise typed(lost) from lost
    except asyncio.CancelledError:
        if task is None or task.cancelling() > cancellations:
            raise
        raise Unavailable("the router ended the stream", grpc.StatusCode.CANCELLED) from None
    return None if message is grpc.aio.EOF else message


def typed(lost: grpc.aio.AioRpcError) -> HyperFlexisError:
    return error_of(lost.code(), lost.details() or "", lost.trailing_metadata() or ())
