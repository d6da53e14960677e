"""Calls with one request message, answered clearly where that message is missing or cannot be read.

gRPC itself says UNKNOWN for bytes that are no message (invalid UTF-8, say), and nothing at all to a client that
half-closes without one. On the wire a single message is a stream of one: here it is read as such.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

FIRST_MESSAGE_S = 10.0
"""A call whose request has not come by then is ended."""
DETAILS_KEY = "grpc-status-details-bin"
OWN_SERVICES = "/hyperflexis."


class _Unreadable:
    def __init__(self, error: Exception) -> None:
        self.error = error


class FirstMessage(grpc.aio.ServerInterceptor):
    """For every unary-request method of our own services."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or not handler_call_details.method.startswith(OWN_SERVICES):
            return handler
        streaming = handler.response_streaming
        inner = handler.unary_stream if streaming else handler.unary_unary

        async def behaviour(messages: Any, context: Any) -> Any:
            return await inner(await _first(messages, context), context)

        async def generator(messages: Any, context: Any) -> AsyncIterator[Any]:
            async for response in inner(await _first(messages, context), context):
                yield response

        make = grpc.stream_stream_rpc_method_handler if streaming else grpc.stream_unary_rpc_method_handler
        chosen = generator if inspect.isasyncgenfunction(inner) else behaviour
        return make(chosen, _deserializer(handler.request_deserializer), handler.response_serializer)


def _deserializer(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(body: bytes) -> Any:
        try:
            return parse(body)
        except (DecodeError, ValueError) as error:
            return _Unreadable(error)

    return read


async def _first(messages: Any, context: Any) -> Any:
    try:
        async with asyncio.timeout(FIRST_MESSAGE_S):
            message = await anext(aiter(messages), None)
    except TimeoutError:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no request came within {FIRST_MESSAGE_S:g} s")
    if message is None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the call was closed without a request message")
    if isinstance(message, _Unreadable):
        text = "the request is no valid message: text must be UTF-8, and the fields those of this method"
        bad = error_details_pb2.BadRequest()
        bad.field_violations.add(description=f"{type(message.error).__name__}: the bytes cannot be parsed")
        status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=text)
        status.details.add().Pack(bad)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text, ((DETAILS_KEY, status.SerializeToString()),))
    return message
