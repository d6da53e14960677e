"""Moves caches into this engine's pool: reads over links, so many at once, one turn after the other.

No thread and no waiting in here: kv/mover_thread.py gives it turns while something is under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from hyperflexis_common.clock import Clock
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.kv.links import Links
from hyperflexis_worker.kv.peer_metadata import PeerMetadata
from hyperflexis_worker.kv.relay import RelayTransport
from hyperflexis_worker.kv.transfers import Forget, News, Order, Read, ReadOver
from hyperflexis_worker.kv.transport import LinkError, Progress, Transport


@dataclass(slots=True)
class _Active:
    read: Read
    transport: Transport
    handle: int
    began_us: int


class Mover:
    """The transports of one engine, best first. `tell` gets the news."""

    def __init__(
        self,
        own: PeerMetadata,
        transports: Rows[Transport],
        clock: Clock,
        tell: Callable[[News], None],
        at_once: int,
    ) -> None:
        self._transports = transports
        self._clock = clock
        self._tell = tell
        self._at_once = at_once
        self._links = Links(own, transports, clock, tell)
        self._waiting: deque[Read] = deque()
        self._active: list[_Active] = []

    @property
    def moving(self) -> bool:
        """Something is to be polled."""
        return bool(self._active or self._waiting) or self._links.moving

    def take(self, order: Order) -> None:
        match order:
            case Read():
                self._waiting.append(order)
            case Forget(transfer_id):
                self._forget(transfer_id)
            case kv.LinkPeer():
                self._links.order(order)
            case kv.FetchedBytes():
                for transport in self._transports:
                    if isinstance(transport, RelayTransport):
                        transport.fetched(order)

    def turn(self) -> bool:
        """Polls what is under way and begins what waits. True where something came to its end."""
        self._links.turn()
        over = False
        for active in list(self._active):
            progress = active.transport.poll(active.handle)
            if progress is not Progress.PENDING:
                over = True
                self._active.remove(active)
                self._over(active, progress is Progress.FAILED)
        for _ in range(len(self._waiting)):
            read = self._waiting.popleft()
            if not self._begin(read):
                self._waiting.append(read)
        return over

    def close(self) -> bool:
        """False where something may still write to the pool: neither it nor the transports may be let go."""
        while self._waiting:
            self._tell(ReadOver(self._waiting.popleft().transfer_id, error="the engine stops"))
        if not self._links.close() or self._active:
            return False
        for transport in self._transports:
            transport.close()
        return True

    def _forget(self, transfer_id: int) -> None:
        for read in [read for read in self._waiting if read.transfer_id == transfer_id]:
            self._waiting.remove(read)
            self._tell(ReadOver(transfer_id, error="no longer wanted"))

    def _begin(self, read: Read) -> bool:
        """False where it has to wait."""
        now_us = self._clock.now_us()
        if now_us >= read.due_us:
            self._tell(ReadOver(read.transfer_id, error="its time was over before it began"))
            return True
        try:
            transport = self._links.transport(read.peer)
            if transport is None or len(self._active) >= self._at_once:
                return False
            handle = transport.post(read.peer, read.lease_id, read.remote, read.local)
        except LinkError as error:
            self._tell(ReadOver(read.transfer_id, error=str(error)))
            return True
        self._links.began(read.peer)
        self._active.append(_Active(read, transport, handle, now_us))
        return True

    def _over(self, active: _Active, failed: bool) -> None:
        took_us = self._clock.now_us() - active.began_us
        error = "the transfer failed" if failed else ""
        self._tell(ReadOver(active.read.transfer_id, active.transport.name, took_us, error))
        self._links.ended(active.read.peer, failed)
