"""One request as its client reads it: every token checked, every silence measured, exactly one end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType

from tally import Tally

from hyperflexis_client import (
    AsyncGeneration,
    DeadlineExceeded,
    Delta,
    Event,
    FinishReason,
    Notice,
    NoticeKind,
    ProtocolError,
)


@dataclass(frozen=True)
class Prompt:
    """A request whose output is known beforehand."""

    token_ids: tuple[int, ...]
    seed: int
    reference: tuple[int, ...]
    temperature: float = 0.0


class Reading:
    """Use as `async with`: whatever is raised inside becomes the request's end, and none is left without one."""

    def __init__(self, tally: Tally, generation: AsyncGeneration, prompt: Prompt, name: str = "") -> None:
        self.generation = generation
        self.prompt = prompt
        self.received: list[int] = []
        self.deltas = 0
        self.ended = False
        self._tally = tally
        self._name = name
        self._longest_s = self._counted_s = 0.0
        tally.requests += 1

    async def __aenter__(self) -> Reading:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._tally.silences.add(self._longest_s, self._counted_s)
        if error is None:
            if not self.ended:
                self._complete()
            return False
        if not isinstance(error, Exception):
            return False  # the run is broken off: this request is missing from the account, as it should be
        if isinstance(error, ProtocolError):
            self._tally.repeated_tokens += error.repeated
            self._tally.lost_tokens += error.missing
        if isinstance(error, TimeoutError | DeadlineExceeded):
            self.stuck(error)
        else:
            self.failed(error)
        return True

    async def events(self) -> AsyncIterator[Event]:
        """To the end, or to where the caller breaks off."""
        while True:
            began = time.monotonic()
            try:
                event = await anext(self.generation)
            except StopAsyncIteration:
                return
            finally:
                ended = time.monotonic()
                self._longest_s = max(self._longest_s, ended - began)
                self._counted_s = max(self._counted_s, self._tally.silences.counting_s(began, ended))
            if isinstance(event, Delta):
                self._take(event)
            elif isinstance(event, Notice) and event.kind is NoticeKind.NOT_DURABLE:
                self._tally.not_durable += 1
            yield event

    async def read(self, tokens: int | None = None, pause_s: float = 0.0) -> None:
        """To the end, or until so many tokens are here. `pause_s`: a slow reader's pause after each delta."""
        async for event in self.events():
            if tokens is not None and len(self.received) >= tokens:
                return
            if pause_s and isinstance(event, Delta):
                await asyncio.sleep(pause_s)

    # --- ends: one of them, once -------------------------------------------------------------------------

    def finished(self) -> None:
        self._end()
        self._tally.finished += 1

    def cancelled(self) -> None:
        self._end()
        self._tally.cancelled += 1

    def failed(self, why: object) -> None:
        self._end()
        self._tally.failed_requests += 1
        self._note(why)

    def stuck(self, why: object) -> None:
        self._end()
        self._tally.stuck_requests += 1
        self._note(why)

    # --- inside ------------------------------------------------------------------------------------------

    def _end(self) -> None:
        assert not self.ended, f"{self.generation.request_id} ended twice"
        self.ended = True

    def _take(self, delta: Delta) -> None:
        received = self.received
        if delta.start_index != len(received):
            self._tally.repeated_tokens += max(len(received) - delta.start_index, 0)
            self._tally.lost_tokens += max(delta.start_index - len(received), 0)
        received += delta.token_ids
        self._tally.tokens_compared += len(delta.token_ids)
        self.deltas += 1
        if tuple(received) != self.prompt.reference[: len(received)]:
            self._tally.spliced += 1

    def _complete(self) -> None:
        finished = self.generation.finished
        missing = len(self.prompt.reference) - len(self.received)
        if finished is None or finished.reason is not FinishReason.LENGTH:
            self.failed(finished)
        else:
            self._tally.lost_tokens += missing
            self.finished()

    def _note(self, what: object) -> None:
        name = f"{self._name}: " if self._name else ""
        self._tally.note(f"{name}{self.generation.request_id}: {type(what).__name__}: {what}")
