"""The write side of a long-lived stream: a bounded queue that one task drains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

Message = TypeVar("Message")


class OutboxFull(Exception):
    """The peer reads too slowly; the stream must be dropped and resynchronised."""


class Outbox(Generic[Message]):
    """Messages on their way to one peer. Putting never waits; a peer that lags is cut off.

    Close it whenever its stream is over: gRPC's task that drains it outlives a call that the peer ended.
    """

    def __init__(self, limit: int = 65_536) -> None:
        self._queue: asyncio.Queue[Message | None] = asyncio.Queue()
        self._limit = limit
        self._closed = False
        self._was_cut = False

    def put(self, message: Message) -> None:
        """Queues a message; after close() it is dropped. Raises OutboxFull beyond the limit."""
        if self._closed:
            return
        if self._queue.qsize() >= self._limit:
            self.close()
            raise OutboxFull(f"{self._limit} messages waiting for a slow peer")
        self._queue.put_nowait(message)

    def close(self) -> None:
        """Ends the iteration after what is queued."""
        if not self._closed:
            self._closed = True
            self._queue.put_nowait(None)

    def cut(self) -> None:
        """Ends the iteration at once: what is queued will be told anew, if anybody asks for it."""
        while not self._queue.empty():
            self._queue.get_nowait()
        self._closed = self._was_cut = True
        self._queue.put_nowait(None)

    @property
    def was_cut(self) -> bool:
        return self._was_cut

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        return self._queue.qsize()

    async def __aiter__(self) -> AsyncIterator[Message]:
        while (message := await self._queue.get()) is not None:
            yield message
