"""A generation read with `async for`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator

from hyperflexis_client._async_link import AsyncLink, next_message
from hyperflexis_client._conversation import Conversation
from hyperflexis_client._errors import HyperFlexisError, ProtocolError, Unavailable
from hyperflexis_client._events import Delta, Event, Result
from hyperflexis_client._generation import GenerationView


class AsyncGeneration(GenerationView):
    """One request's stream of events, across as many connections as it takes.

    `async for event in generation` yields Accepted, Delta, Notice and Finished; `deltas()` only the Deltas;
    `await generation.result()` reads to the end. A stream that is left is lost: the request then runs on for its
    detach grace; `cancel()` ends it at once.
    """

    def __init__(self, link: AsyncLink, conversation: Conversation, timeout_s: float | None) -> None:
        super().__init__(conversation, timeout_s)
        self._link = link
        self._events = self._read()

    def __aiter__(self) -> AsyncGeneration:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def deltas(self) -> AsyncIterator[Delta]:
        async for event in self:
            if isinstance(event, Delta):
                yield event

    async def result(self) -> Result:
        """Reads to the end. Raises Refused or InternalError where the generation ended so."""
        async for _ in self:
            pass
        return self._conversation.result()

    async def cancel(self) -> None:
        """Ends the request at once and closes the stream."""
        await self.aclose()
        if self.request_id and self.finished is None:
            await self._link.cancel(self.request_id)

    async def aclose(self) -> None:
        """Leaves the stream; the request runs on for its detach grace."""
        await self._events.aclose()

    async def _read(self) -> AsyncGenerator[Event, None]:
        recovery = self._link.recovery()
        turn = self._link.next_turn()
        began_s = time.monotonic()
        while self.finished is None:
            left_s = self._left_s(time.monotonic(), began_s)
            call = self._link.open(self._conversation.next_call(), turn, left_s)
            try:
                while (message := await next_message(call)) is not None:
                    events = self._conversation.events(message.event)
                    recovery.connected()
                    for event in events:
                        if isinstance(event, Delta):
                            recovery.progressed()
                        yield event
                error: HyperFlexisError = Unavailable("the stream ended without Finished")
            except ProtocolError:
                raise
            except HyperFlexisError as lost:
                error = lost
            finally:
                call.cancel()
            if self.finished is None:
                carry = self._conversation.carry_request
                delay_s = recovery.delay_s(error, time.monotonic(), accepted=bool(self.request_id), carry_request=carry)
                await asyncio.sleep(delay_s)
                turn += 1
