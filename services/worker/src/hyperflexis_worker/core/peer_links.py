"""Which other engines this one can read from: links to single lives of engines, made when first needed or told."""

from __future__ import annotations

from collections.abc import Callable

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.worker.v1 import worker_service_pb2
from hyperflexis_worker.core.effects import AskLink, Effect, LinkEngine

Then = Callable[[str, int], None]
"""Told why there is no link (empty: there is one) and the time."""


class PeerLinks:
    """Names of engines are theirs to choose and never used twice."""

    def __init__(self, effects: list[Effect]) -> None:
        self._effects = effects
        self.layout = b""
        """Of this engine's blocks: one whose blocks mean something else is not linked to."""
        self._up: dict[str, movement_pb2.LinkStatus] = {}
        self._failed: dict[str, movement_pb2.LinkStatus] = {}
        """By worker id: the last attempt came to nothing."""
        self._asked: dict[int, tuple[movement_pb2.WorkerRef, str]] = {}
        """By number: the peer, and the engine that somebody waits for there."""
        self._peers: dict[str, movement_pb2.WorkerRef] = {}
        """By engine, of links up or being made."""
        self._waiting: dict[str, list[Then]] = {}
        self._numbers = 0

    def need(self, engine: str, peer: movement_pb2.WorkerRef, then: Then, now_us: int) -> None:
        """Calls `then` once there is a link to this engine, which lives at that worker, or once there can be none."""
        if engine in self._up:
            return then("", now_us)
        waiting = self._waiting.setdefault(engine, [])
        waiting.append(then)
        if len(waiting) == 1:
            self._ask(peer, engine)

    def link(self, peer: movement_pb2.WorkerRef) -> None:
        """Ahead of need, to whatever engine lives there."""
        self._ask(peer, "")

    def unlink(self, worker_id: str) -> None:
        for engine in [e for e, peer in self._peers.items() if peer.worker_id == worker_id]:
            self.lost(engine)
        self._failed.pop(worker_id, None)

    def told(self, number: int, response: worker_service_pb2.LinkResponse | None, error: str, now_us: int) -> None:
        """The peer's answer to AskLink."""
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        peer, wanted = asked
        if response is None or not response.parts:
            return self._refused(peer, wanted, error or "link_refused", now_us)
        engine = response.engine
        if wanted and engine != wanted:
            self._refused(peer, wanted, "source_engine_changed", now_us)
        if response.parts[0].layout_fingerprint != self.layout:
            return self._refused(peer, engine, "layout_differs", now_us)
        if engine not in self._up:
            self._peers[engine] = peer
            self._effects.append(LinkEngine(engine, response.parts[0].agent_metadata))

    def linked(self, engine: str, status: movement_pb2.LinkStatus, now_us: int) -> None:
        """The engine's word on a link, asked for or not; a status without transport: there is none."""
        peer = self._peers.get(engine)
        if peer is None:
            return
        status.peer.CopyFrom(peer)
        if not status.transport:
            self._up.pop(engine, None)
            return self._refused(peer, engine, status.error or "link_failed", now_us)
        self._up[engine] = status
        self._failed.pop(peer.worker_id, None)
        for then in self._waiting.pop(engine, []):
            then("", now_us)

    def peer(self, engine: str) -> movement_pb2.WorkerRef | None:
        """Where it lives, of engines linked or being linked."""
        return self._peers.get(engine)

    def lost(self, engine: str) -> None:
        """It did not work any more: the next one who needs it makes it anew, or finds out why that cannot be."""
        self._up.pop(engine, None)
        if engine not in self._waiting:  # else it is being made anew, and they are to hear what becomes of that
            self._peers.pop(engine, None)

    def engine_lost(self) -> None:
        """The next engine here knows nobody."""
        self._up.clear()
        self._peers.clear()
        self._asked.clear()
        self._waiting.clear()

    def statuses(self) -> list[movement_pb2.LinkStatus]:
        """All links, and those that failed."""
        return [*self._up.values(), *self._failed.values()]

    def _ask(self, peer: movement_pb2.WorkerRef, engine: str) -> None:
        self._numbers += 1
        self._asked[self._numbers] = (peer, engine)
        self._effects.append(AskLink(self._numbers, peer.address))

    def _refused(self, peer: movement_pb2.WorkerRef, engine: str, reason: str, now_us: int) -> None:
        self._failed[peer.worker_id] = movement_pb2.LinkStatus(peer=peer, error=reason)
        if engine not in self._up:
            self._peers.pop(engine, None)
        for then in self._waiting.pop(engine, []):
            then(reason, now_us)
