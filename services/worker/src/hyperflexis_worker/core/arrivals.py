"""Requests that come here with their caches: the target's side of a move (docs/protocol.md, "Moves").

    reserve blocks -> [ask what is there -> read it] while it runs on at its source -> stop it there -> read the rest
    -> was the lease alive all the while? -> go on here

Whatever fails before the stop leaves the request at its source as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis.worker.v1 import worker_service_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.effects import (
    AskExport,
    AskRelease,
    Effect,
    PullBlocks,
    ReserveBlocks,
    UnreserveBlocks,
)
from hyperflexis_worker.core.peer_links import PeerLinks
from hyperflexis_worker.core.questions import Questions
from hyperflexis_worker.core.request import Request

MOVE_LIMIT_US = 10_000_000
"""A move takes this long at most; then it has failed."""
LEASE_MARGIN_US = 200_000
"""Of a lease, at its end, in which nothing read counts any more: the source's clock may be ahead by that."""
GROWTH_TOKENS = 64
"""Reserved beyond what there is: what it makes at its source while its cache is under way."""
LAST_BLOCKS = 2
"""So few are left that reading them delays nobody: it is stopped now."""
ROUNDS = 4
"""It is stopped after as many, however fast it grows."""


class Step(Enum):
    RESERVING = "reserving"
    ASKING = "asking"
    LINKING = "linking"
    READING = "reading"
    RELEASING = "releasing"


@dataclass(slots=True, eq=False)
class Arrival:
    """One request on its way here."""

    request: Request
    ticket: movement_pb2.KvTicket
    began_us: int
    step: Step = Step.RESERVING
    export: worker_service_pb2.ExportKvResponse | None = None
    """The newest answer of its source."""
    lease_id: int = 0
    lease_ends_us: int = 0
    """When what is read under it counts no more, on this clock."""
    asked_us: int = 0
    final: bool = False
    reserved_tokens: int = 0
    blocks: int = 0
    """That are here."""
    rounds: int = 0
    stopped_us: int = 0
    """When its source was asked to stop it."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """Everything is here: what its router sent, all output tokens in it, and how many tokens are in the cache."""

    request: Request
    export: worker_service_pb2.ExportKvResponse
    numbers: dict[str, float]


class Arrivals:
    """`failed` and `arrived` are told at most one of for each request that came by `begin`."""

    def __init__(
        self,
        effects: list[Effect],
        links: PeerLinks,
        block_tokens: int,
        numbers: Iterator[int],
        failed: Callable[[Request, str, int], None],
        arrived: Callable[[Arrived, int], None],
    ) -> None:
        self._effects = effects
        self._links = links
        self._block_tokens = block_tokens
        self._failed = failed
        self._arrived = arrived
        self._arrivals: dict[str, Arrival] = {}
        self._questions: Questions[Arrival] = Questions(numbers)

    def __len__(self) -> int:
        return len(self._arrivals)

    def begin(self, request: Request, ticket: movement_pb2.KvTicket, now_us: int) -> None:
        """An AttachKv came, and the request is here in no other form."""
        arrival = Arrival(request, ticket, now_us)
        self._arrivals[request.request_id] = arrival
        self._reserve(arrival, ticket.num_tokens)

    def abandon(self, request_id: str) -> None:
        """It is not wanted any more; nobody is told."""
        arrival = self._arrivals.get(request_id)
        if arrival is not None:
            self._forget(arrival)

    # --- answers -----------------------------------------------------------------------------------------

    def reserved(self, request_id: str, attempt: Attempt, ok: bool, now_us: int) -> None:
        arrival = self._arrivals.get(request_id)
        if arrival is None or arrival.request.attempt != attempt or arrival.step is not Step.RESERVING:
            return
        if not ok:
            return self._fail(arrival, "no_blocks", now_us)
        if arrival.export is not None:
            return self._read(arrival, now_us)
        self._ask(arrival, final=False, now_us=now_us)

    def exported(
        self, number: int, response: worker_service_pb2.ExportKvResponse | None, error: str, now_us: int
    ) -> None:
        """The source's answer to AskExport; None where there was none."""
        arrival = self._questions.answered(number)
        if arrival is None:
            return
        if response is None:
            return self._fail(arrival, error or "source_refused", now_us)
        arrival.export = response
        arrival.lease_id = response.lease_id
        arrival.lease_ends_us = arrival.asked_us + response.lease_us - LEASE_MARGIN_US
        arrival.step = Step.LINKING
        self._links.need(response.engine, arrival.ticket.source, partial(self._linked, arrival), now_us)

    def _linked(self, arrival: Arrival, error: str, now_us: int) -> None:
        if self._arrivals.get(arrival.request.request_id) is not arrival:
            return
        if error:
            return self._fail(arrival, error, now_us)
        self._read(arrival, now_us)

    def pulled(self, number: int, error: str, now_us: int) -> None:
        arrival = self._questions.answered(number)
        if arrival is None or arrival.export is None:
            return
        if error:
            self._links.lost(arrival.export.engine)
            return self._fail(arrival, "read_failed", now_us)
        if now_us >= arrival.lease_ends_us:
            return self._fail(arrival, "lease_over", now_us)
        self._read_done(arrival, now_us)

    def released(self, number: int, held: bool, error: str, now_us: int) -> None:
        arrival = self._questions.answered(number)
        if arrival is None or arrival.export is None:
            return
        arrival.lease_id = 0
        if error or not held:
            return self._fail(arrival, error or "lease_over", now_us)
        request = arrival.request
        del self._arrivals[request.request_id]
        numbers = {
            "blocks": float(arrival.blocks),
            "rounds": float(arrival.rounds),
            "move_us": float(now_us - arrival.began_us),
            "stopped_us": float(now_us - arrival.stopped_us),
        }
        self._arrived(Arrived(request, arrival.export, numbers), now_us)

    def progress(self) -> list[worker_session_pb2.KvProgress]:
        """How far each is, for reports."""
        return [
            worker_session_pb2.KvProgress(
                request_id=request_id, attempt=arrival.request.attempt.proto(), ready_blocks=arrival.blocks
            )
            for request_id, arrival in self._arrivals.items()
        ]

    def tick(self, now_us: int) -> None:
        for arrival in [a for a in self._arrivals.values() if now_us - a.began_us > MOVE_LIMIT_US]:
            self._fail(arrival, f"timeout_{arrival.step.value}", now_us)

    def fail_all(self, reason: str, now_us: int) -> None:
        for arrival in list(self._arrivals.values()):
            self._fail(arrival, reason, now_us)

    # --- inside ------------------------------------------------------------------------------------------

    def _reserve(self, arrival: Arrival, tokens: int) -> None:
        arrival.step = Step.RESERVING
        arrival.reserved_tokens = tokens + GROWTH_TOKENS
        request = arrival.request
        self._effects.append(ReserveBlocks(request.request_id, request.attempt, arrival.reserved_tokens))

    def _ask(self, arrival: Arrival, final: bool, now_us: int) -> None:
        arrival.step = Step.ASKING
        arrival.asked_us = now_us
        arrival.final = final
        if final:
            arrival.stopped_us = now_us
        request, ticket = arrival.request, arrival.ticket
        ask = worker_service_pb2.ExportKvRequest(
            request_id=request.request_id,
            attempt=ticket.attempt,
            target_attempt=request.attempt.proto(),
            from_block=arrival.blocks,
            lease_id=arrival.lease_id,
            final=final,
        )
        self._effects.append(AskExport(self._questions.ask(arrival), ticket.source.address, ask))

    def _read(self, arrival: Arrival, now_us: int) -> None:
        export, request = arrival.export, arrival.request
        assert export is not None
        blocks = packing.unpack(export.parts[0].block_ids) if export.parts else []
        if not blocks:
            return self._read_done(arrival, now_us)
        tokens = (arrival.blocks + len(blocks)) * self._block_tokens
        if tokens > arrival.reserved_tokens:
            return self._reserve(arrival, tokens)
        arrival.step = Step.READING
        within_us = arrival.lease_ends_us - now_us
        if within_us <= 0:
            return self._fail(arrival, "lease_over", now_us)
        number, first = self._questions.ask(arrival), arrival.blocks
        self._effects.append(
            PullBlocks(
                number,
                request.request_id,
                request.attempt,
                export.engine,
                export.lease_id,
                first,
                blocks,
                within_us,
                arrival.final,
            )
        )

    def _read_done(self, arrival: Arrival, now_us: int) -> None:
        """What was asked for is here: now the rest, or the check of the lease."""
        export = arrival.export
        assert export is not None
        new = packing.count(export.parts[0].block_ids) if export.parts else 0
        arrival.blocks += new
        if arrival.final:
            arrival.step = Step.RELEASING
            address, lease_id = arrival.ticket.source.address, arrival.lease_id
            self._effects.append(AskRelease(self._questions.ask(arrival), address, lease_id))
            return
        arrival.rounds += 1
        self._ask(arrival, final=new <= LAST_BLOCKS or arrival.rounds >= ROUNDS, now_us=now_us)

    def _fail(self, arrival: Arrival, reason: str, now_us: int) -> None:
        self._forget(arrival)
        self._failed(arrival.request, reason, now_us)

    def _forget(self, arrival: Arrival) -> None:
        request = arrival.request
        del self._arrivals[request.request_id]
        self._questions.drop(arrival)
        self._effects.append(UnreserveBlocks(request.request_id, request.attempt))
        if arrival.lease_id:
            self._effects.append(AskRelease(0, arrival.ticket.source.address, arrival.lease_id))
