"""What virtual workers ask each other in the course of a move: calls that take their time, fail and time out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from virtual_process import SECOND

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.worker.v1 import worker_service_pb2
from hyperflexis_worker.core import effects, move_event
from hyperflexis_worker.engine import frames, kv_frames

if TYPE_CHECKING:
    from virtual_worker import Worker

DEADLINE_US = 2 * SECOND
LAYOUT = b"layout"

Reply = Callable[[Any, str], None]
"""The answer, or None and why."""


class Peers:
    """One worker's calls to others, and its answers to theirs."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._time = worker.cell.time
        self._chance = worker.cell.chance
        self._open: dict[int, Reply] = {}
        self._numbers = 0

    def carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.AnswerRelease(number, held):
                self._answer(number, held, "")
            case effects.AskExport(number, address, request):
                self._call(
                    address,
                    lambda peer, reply: peer.export(request, reply),
                    lambda answer, error: self._tell(move_event.PeerExported(number, answer, error)),
                )
            case effects.AskPrefix(number, address, prefix):
                self._call(
                    address,
                    lambda peer, reply: peer.export_prefix(prefix, reply),
                    lambda answer, error: self._tell(move_event.PeerPrefix(number, answer, error)),
                )
            case effects.AskLink(number, address):
                self._call(
                    address,
                    lambda peer, reply: peer.link(reply),
                    lambda answer, error: self._tell(move_event.PeerLinked(number, answer, error)),
                )
            case effects.AskRelease(number, address, lease_id):
                self._call(
                    address,
                    lambda peer, reply: peer.release(lease_id, reply),
                    lambda answer, error: self._tell(move_event.PeerReleased(number, bool(answer), error)),
                )
            case effects.AnswerExport(number, response, _, full):
                self._answer(number, response, "source_resource_exhausted" if full else "source_not_found")

    def engine_said(self, frame: frames.FromEngine) -> None:
        if isinstance(frame, kv_frames.Released):
            self._answer(frame.number, frame.held, "")

    def engine_lost(self) -> None:
        for number in list(self._open):
            self._answer(number, None, "source_unavailable")

    # --- what others ask ---

    def export(self, request: worker_service_pb2.ExportKvRequest, reply: Reply) -> None:
        self._tell(move_event.ExportAsked(self._number(reply), request))

    def export_prefix(self, request: worker_service_pb2.ExportPrefixRequest, reply: Reply) -> None:
        self._tell(move_event.PrefixAsked(self._number(reply), request))

    def link(self, reply: Reply) -> None:
        engine = self._worker.engine
        if not engine.ready:
            return reply(None, "source_unavailable")
        part = movement_pb2.RankPart(layout_fingerprint=LAYOUT)
        reply(worker_service_pb2.LinkResponse(parts=[part], engine=engine.name), "")

    def release(self, lease_id: int, reply: Reply) -> None:
        self._tell(move_event.ReleaseAsked(self._number(reply), lease_id))

    # --- inside ---

    def _tell(self, event: move_event.MoveEvent) -> None:
        self._worker.apply(self._worker.core.move_event(event, self._worker.now_us()))

    def _number(self, reply: Reply) -> int:
        self._numbers += 1
        self._open[self._numbers] = reply
        return self._numbers

    def _answer(self, number: int, answer: Any, error: str) -> None:
        reply = self._open.pop(number, None)
        if reply is not None:
            reply(answer, error)

    def _call(self, address: str, ask: Callable[[Peers, Reply], None], told: Reply) -> None:
        """There and back, unless one of them dies, or it takes too long: then the caller hears of that, once."""
        ended = False

        def end(answer: Any, error: str) -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._worker.deliver(lambda: told(answer, error))

        def back(answer: Any, error: str) -> None:
            self._time.after(self._delay(), lambda: end(answer, error))

        def there() -> None:
            peer = self._worker.cell.worker_at(address)
            if peer is None or not peer.alive:
                back(None, "source_unavailable")
            else:
                peer.deliver(lambda: ask(peer.peers, back))

        self._time.after(self._delay(), there)
        self._time.after(DEADLINE_US, lambda: end(None, "source_deadline_exceeded"))

    def _delay(self) -> int:
        return self._chance.randrange(100, 2_000)
