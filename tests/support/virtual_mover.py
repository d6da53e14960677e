"""The thread that moves an engine's caches, in virtual time: one-sided reads out of pools that know nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from hyperflexis_worker.engine import kv_frames
from hyperflexis_worker.kv.transfers import Forget, News, Order, Read, ReadOver

if TYPE_CHECKING:
    from virtual_engine import Engine

SLOW_SHARE = 0.02
"""Of all reads, those that take seconds."""


class VirtualMover:
    """One life's. As a one-sided transport, it copies each block when its turn has come, whatever is there then."""

    def __init__(self, engine: Engine, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._time = engine.worker.cell.time
        self._chance = engine.worker.cell.chance
        self._storage = engine.storage
        self._wake = wake
        self._news: list[News] = []
        self._forgotten: set[int] = set()
        self._under_way: set[int] = set()

    def order(self, order: Order) -> bool:
        match order:
            case kv_frames.LinkPeer(peer):
                self._time.after(self._chance.randrange(1_000, 30_000), lambda: self._link(peer))
            case Read():
                self._time.after(self._chance.randrange(100, 3_000), lambda: self._begin(order))
            case Forget(transfer_id):
                if transfer_id not in self._under_way:
                    self._forgotten.add(transfer_id)
        return True

    def news(self) -> list[News]:
        news, self._news = self._news, []
        return news

    def close(self) -> None:
        """Its process ends with it."""

    def _tell(self, news: News) -> None:
        self._news.append(news)
        self._wake()

    def _link(self, peer: str) -> None:
        if self._source(peer) is None:
            self._tell(kv_frames.Linked(peer, error="no such engine"))
        else:
            self._tell(kv_frames.Linked(peer, "virtual", 1.0, 1_000))

    def _begin(self, read: Read) -> None:
        if read.transfer_id in self._forgotten or self._engine.worker.now_us() > read.due_us:
            self._forgotten.discard(read.transfer_id)
            return self._tell(ReadOver(read.transfer_id, "virtual", 0, "not begun"))
        self._under_way.add(read.transfer_id)
        longest_us = 6_000_000 if self._chance.random() < SLOW_SHARE else 20_000
        ends_us = self._chance.randrange(200, longest_us)
        for remote, local in zip(read.remote, read.local, strict=True):
            at_us = self._chance.randrange(0, ends_us)
            self._time.after(at_us, partial(self._copy, read.peer, remote, local))
        self._time.after(ends_us, lambda: self._end(read, ends_us))

    def _copy(self, peer: str, remote: int, local: int) -> None:
        source = self._source(peer)
        if source is not None:
            self._storage.write([local], source.storage.read([remote]))

    def _end(self, read: Read, took_us: int) -> None:
        self._under_way.discard(read.transfer_id)
        error = "" if self._source(read.peer) is not None else "the peer is gone"
        self._tell(ReadOver(read.transfer_id, "virtual", took_us, error))

    def _source(self, peer: str) -> Engine | None:
        """The engine of this name, while its process lives: one that is stopped can be read from."""
        engine = self._engine.worker.cell.engines.get(peer)
        return engine if engine is not None and engine.name == peer and engine.worker.alive else None
