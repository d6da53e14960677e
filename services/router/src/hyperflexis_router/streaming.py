"""One client's stream, from its first event to its one terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis_common.clock import Clock
from hyperflexis_router.live import Attached, LiveRequest
from hyperflexis_router.rejection import Context, Rejected

Wrap = Callable[[inference_service_pb2.StreamEvent], Any]
"""A StreamEvent as GenerateResponse or ResumeResponse."""


async def stream(live: LiveRequest, attached: Attached, context: Context, wrap: Wrap, clock: Clock) -> None:
    """Sends events until Finished. Raises Rejected where the stream ends without it.

    Writing waits while the client does not read; nothing else waits for it.
    """
    client = attached.stream
    while True:
        attached.changed.clear()
        if attached.superseded:
            raise Rejected(grpc.StatusCode.ABORTED, "the request was resumed on another stream")
        if live.released and live.finished is None:
            raise Rejected(grpc.StatusCode.ABORTED, "the request was resumed on another router")
        event = client.next_event(live.packed, live.available, live.finished, clock.now_us(), live.logprobs or ())
        if event is not None:
            await context.write(wrap(event))
            if client.done:
                return
            continue
        wait_us = client.wait_us(live.available, live.finished is not None, clock.now_us())
        if wait_us is None:
            await attached.changed.wait()
        elif wait_us > 0:
            await asyncio.sleep(wait_us / 1e6)
