"""A generation read with `for`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator
from typing import Any

import grpc

from hyperflexis_client._conversation import Conversation
from hyperflexis_client._errors import Cancelled, HyperFlexisError, ProtocolError, Unavailable
from hyperflexis_client._events import Delta, Event, Result
from hyperflexis_client._generation import GenerationView
from hyperflexis_client._sync_link import SyncLink, typed


class Generation(GenerationView):
    """One request's stream of events, across as many connections as it takes.

    `for event in generation` yields Accepted, Delta, Notice and Finished; `deltas()` only the Deltas;
    `generation.result()` reads to the end. A stream that is left is lost: the request then runs on for its detach
    grace; `cancel()` ends it at once.
    """

    def __init__(self, link: SyncLink, conversation: Conversation, timeout_s: float | None) -> None:
        super().__init__(conversation, timeout_s)
        self._link = link
        self._call: Any = None
        self._closed = False
        self._events = self._read()

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def deltas(self) -> Iterator[Delta]:
        for event in self:
            if isinstance(event, Delta):
                yield event

    def result(self) -> Result:
        """Reads to the end. Raises Refused or InternalError where the generation ended so."""
        for _ in self:
            pass
        return self._conversation.result()

    def cancel(self) -> None:
        """Ends the request at once and closes the stream."""
        self.close()
        if self.request_id and self.finished is None:
            self._link.cancel(self.request_id)

    def close(self) -> None:
        """Leaves the stream; the request runs on for its detach grace. From another thread: ends the reading there
        with Cancelled."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()
        with contextlib.suppress(ValueError):  # being read in another thread, which the cancelled call ends
            self._events.close()

    def _read(self) -> Generator[Event, None, None]:
        recovery = self._link.recovery()
        turn = self._link.next_turn()
        began_s = time.monotonic()
        while self.finished is None:
            left_s = self._left_s(time.monotonic(), began_s)
            self._call = self._link.open(self._conversation.next_call(), turn, left_s)
            error: HyperFlexisError = Unavailable("the stream ended without Finished")
            try:
                while (message := self._next_message()) is not None:
                    events = self._conversation.events(message.event)
                    recovery.connected()
                    for event in events:
                        if isinstance(event, Delta):
                            recovery.progressed()
                        yield event
            except ProtocolError:
                raise
            except HyperFlexisError as lost:
                error = lost
            finally:
                self._call.cancel()
            if self.finished is None:
                carry = self._conversation.carry_request
                delay_s = recovery.delay_s(error, time.monotonic(), accepted=bool(self.request_id), carry_request=carry)
                self._link.wait(delay_s)
                turn += 1

    def _next_message(self) -> Any | None:
        """The next message; None at the stream's end. Raises HyperFlexisError for an error status.

        CANCELLED that we did not ask for is a router that ended the stream, as one that shuts down does.
        """
        try:
            return next(self._call, None)
        except grpc.RpcError as lost:
            error = typed(lost)
            if isinstance(error, Cancelled) and not self._closed:
                raise Unavailable("the router ended the stream", grpc.StatusCode.CANCELLED) from lost
            raise error from lost
