"""Requests that leave with their caches: the source's side of a move. It only answers what the target asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2, worker_service_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_worker.core.effects import AnswerExport, Effect, EndLease, ExportCache
from hyperflexis_worker.core.move_event import Exported
from hyperflexis_worker.core.request import Request

LEASE_US = 5_000_000
"""What the target is told, from when it hears of it; asking again renews it."""
HOLDER_MARGIN_US = 1_000_000
"""The lease itself is longer by this: the answer may have been under way, and clocks differ."""


@dataclass(slots=True)
class _Asked:
    """An export that the engine is asked for."""

    request: Request
    final: bool


class Departures:
    """Questions carry the shell's numbers."""

    def __init__(self, effects: list[Effect], live: Callable[[Request], bool]) -> None:
        self._effects = effects
        self._live = live
        """Whether the engine still has a request, as far as has been told."""
        self._asked: dict[int, _Asked] = {}
        self._leases: dict[str, int] = {}
        """Of each request that is being read from here, by its id."""
        self._stopped: dict[str, tuple[Request, int]] = {}
        """Those stopped for good, until their target has everything or its time is over."""

    def ask(
        self, number: int, request: Request | None, ask: worker_service_pb2.ExportKvRequest, engine_up: bool
    ) -> None:
        """`request`: as it is here, at the attempt asked for, live; None where it is not."""
        if request is None or not engine_up or request.start is None:
            self._answer(number, "the request does not run here under this attempt")
            return
        self._asked[number] = _Asked(request, ask.final)
        lease_us = LEASE_US + HOLDER_MARGIN_US
        self._effects.append(
            ExportCache(number, request.request_id, request.attempt, ask.from_block, ask.lease_id, lease_us, ask.final)
        )

    def exported(self, export: Exported, now_us: int) -> Request | None:
        """The engine's answer, to be passed on. Returns the request that it stopped, if it did."""
        asked = self._asked.pop(export.number, None)
        if asked is None:
            return None
        if export.error:
            self._answer(export.number, export.error, export.full)
            return None
        request = asked.request
        if not self._live(request):
            # It ended while the engine was asked; what it stopped, if it did, nobody wants.
            self._effects.append(EndLease(export.lease_id))
            self._answer(export.number, "the request has ended here")
            return None
        self._leases[request.request_id] = export.lease_id
        part = movement_pb2.RankPart(
            block_ids=packing.pack(export.blocks), generations=packing.pack(g & 0xFFFFFFFF for g in export.generations)
        )
        response = worker_service_pb2.ExportKvResponse(
            lease_id=export.lease_id,
            lease_us=LEASE_US,
            parts=[part],
            computed_tokens=export.computed,
            engine=export.engine,
        )
        if asked.final:
            if export.output != bytes(request.tokens):
                raise AssertionError(f"the engine stopped {request.request_id} with tokens that it did not tell")
            assert request.start is not None
            start = token_feed_pb2.Start()
            start.CopyFrom(request.start)
            start.committed = export.output
            response.start.CopyFrom(start)
            request.phase = worker_session_pb2.REQUEST_PHASE_EXPORTED
            self._stopped[request.request_id] = (request, now_us + LEASE_US + HOLDER_MARGIN_US)
        self._effects.append(AnswerExport(export.number, response))
        return request if asked.final else None

    def forget(self, request: Request) -> None:
        """It is not here any more: nobody may read it either, unless it was stopped for whoever reads it now."""
        self._stopped.pop(request.request_id, None)
        lease_id = self._leases.pop(request.request_id, 0)
        if lease_id:
            self._effects.append(EndLease(lease_id))

    def engine_lost(self) -> list[Request]:
        """Its leases died with it. Returns the stopped requests: their caches are gone."""
        for number in self._asked:
            self._answer(number, "the engine ended")
        self._asked.clear()
        self._leases.clear()
        stopped = [request for request, _ in self._stopped.values()]
        self._stopped.clear()
        return stopped

    def overdue(self, now_us: int) -> list[Request]:
        """Stopped requests that nobody has fetched in time."""
        return [request for request, until_us in self._stopped.values() if until_us <= now_us]

    def _answer(self, number: int, error: str, full: bool = False) -> None:
        self._effects.append(AnswerExport(number, None, error, full))
