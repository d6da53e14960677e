"""Where the streams meet the core: events go in one at a time, effects go out to the sessions' outboxes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import structlog

from hyperflexis_common.clock import Clock
from hyperflexis_common.outbox import Outbox, OutboxFull
from hyperflexis_scheduler.core.effects import (
    CloseSession,
    Effect,
    HigherEpoch,
    Remember,
    ToRouter,
    ToWorker,
    TpotTooShort,
)
from hyperflexis_scheduler.core.scheduler import SchedulerCore
from hyperflexis_scheduler.faults import Faults

log = structlog.get_logger(__name__)

_LAST_WORDS = ("not_leader", "rejected")
"""A stream whose last message says it all ends with OK."""


class Session:
    """The write side of one stream."""

    def __init__(self, limit: int) -> None:
        self.outbox: Outbox[Any] = Outbox(limit)
        self.reason = ""
        """Why the stream ends, where an error status should say so."""
        self.permanent = False
        self._last_kind: str | None = None

    def put(self, message: Any) -> None:
        self._last_kind = message.WhichOneof("message")
        self.outbox.put(message)

    def end(self, reason: str, permanent: bool) -> None:
        if self._last_kind not in _LAST_WORDS:
            self.reason = self.reason or reason
            self.permanent = permanent
        self.outbox.close()


class Desk:
    """Single-threaded: every event runs to its end before the next."""

    def __init__(self, core: SchedulerCore, clock: Clock, faults: Faults, outbox_limit: int) -> None:
        self.core = core
        self.on_higher_epoch: Callable[[int], None] = lambda epoch: None
        self.on_remember: Callable[[], object] = lambda: None
        self._clock = clock
        self._faults = faults
        self._outbox_limit = outbox_limit
        self._sessions: dict[int, Session] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._sessions)

    def open(self) -> tuple[int, Session]:
        number = next(self._numbers)
        session = self._sessions[number] = Session(self._outbox_limit)
        return number, session

    def forget(self, number: int) -> None:
        """The stream has ended."""
        self._sessions.pop(number, None)

    def do(self, event: Callable[..., list[Effect]], *arguments: Any) -> None:
        """Gives one event to the core, at the present time, and performs its effects."""
        self.perform(event(*arguments, self._clock.now_us()))

    def perform(self, effects: list[Effect]) -> None:
        epoch = 0
        for effect in effects:
            match effect:
                case ToRouter(number, message) | ToWorker(number, message):
                    self._send(number, message)
                case CloseSession(number, reason, permanent):
                    if number in self._sessions:
                        self._sessions[number].end(reason, permanent)
                case HigherEpoch():
                    epoch = max(epoch, effect.epoch)
                case Remember():
                    self.on_remember()
                case TpotTooShort(tier, model, tpot_us, empty_step_us):
                    log.warning(
                        "no worker can keep this tier's TPOT: a step takes longer with nothing in it; raise tpot_ms",
                        tier=tier,
                        model=model,
                        tpot_ms=tpot_us / 1_000,
                        empty_step_ms=round(empty_step_us / 1_000, 2),
                    )
        if epoch:
            self.on_higher_epoch(epoch)

    def _send(self, number: int, message: Any) -> None:
        session = self._sessions.get(number)
        if session is None:
            return
        if self._faults.drops(message):
            log.warning("dropped on purpose", message=message.WhichOneof("message"), session=number)
            return
        try:
            session.put(message)
        except OutboxFull as error:
            log.warning("session dropped", session=number, reason=str(error))
            session.end(str(error), permanent=False)
