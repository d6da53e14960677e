"""A router under test, what a client sends it, and how it reads the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from router_fakes import model_token

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis_common.tokens import pack, unpack
from hyperflexis_router.app import RouterApp

PROMPT = [1, 2, 3]


def reference(length: int, prompt: list[int] = PROMPT) -> list[int]:
    """What the fake worker makes of a prompt."""
    output: list[int] = []
    while len(output) < length:
        output.append(model_token(prompt, output))
    return output


class Router:
    """A router that serves, and a stub that calls it."""

    def __init__(self, app: RouterApp, stub: Any) -> None:
        self.app = app
        self.stub = stub


MakeRouter = Callable[..., Awaitable[Router]]


def generate(model: str = "ids", max_tokens: int = 5, prompt: list[int] = PROMPT, **fields: Any) -> pb.GenerateRequest:
    sampling = fields.pop("sampling", sampling_pb2.SamplingParams())
    sampling.max_tokens = max_tokens
    if "text" not in fields:
        fields["token_ids"] = pb.TokenIds(packed=pack(prompt))
    return pb.GenerateRequest(model=model, sampling=sampling, **fields)


def tokens_of(events: list[pb.StreamEvent]) -> list[int]:
    return [token for event in events for token in unpack(event.delta.token_ids.packed)]


def text_of(events: list[pb.StreamEvent]) -> str:
    return "".join(event.delta.text for event in events)


async def collect(call: Any, events: list[pb.StreamEvent] | None = None) -> list[pb.StreamEvent]:
    events = [] if events is None else events
    while (response := await call.read()) is not grpc.aio.EOF:
        events.append(response.event)
    return events


async def read_until(call: Any, tokens: int) -> list[pb.StreamEvent]:
    events: list[pb.StreamEvent] = []
    while len(tokens_of(events)) < tokens or not events:
        events.append((await call.read()).event)
    return events


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def status_of(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "read"):
            await collect(call)
        else:
            await call
    return caught.value
