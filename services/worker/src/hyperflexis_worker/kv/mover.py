"""Moves caches into this engine's pool: reads over links, so many at once, one turn after the other.

No thread and no waiting in here: kv/mover_thread.py gives it turns while something is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

from hyperflexis_common.clock import Clock
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.kv.links import Links
from hyperflexis_worker.kv.peer_metadata import PeerMetadata
from hyperflexis_worker.kv.read_order import IN_FLIGHT_US, PIECE_BYTES, ReadOrder
from hyperflexis_worker.kv.relay import RelayTransport
from hyperflexis_worker.kv.transfers import Forget, News, Order, Read, ReadOver
from hyperflexis_worker.kv.transport import LinkError, Progress, Transport


@dataclass(frozen=True, slots=True)
class _Piece:
    began_us: int
    bytes_at_once: int
    """Under way with it, if the others are as large."""


@dataclass(slots=True, eq=False)
class _Reading:
    read: Read
    transport: Transport | None = None
    """Once some of it has begun."""
    began_us: int = 0
    begun: int = 0
    """Blocks."""
    pieces: dict[int, _Piece] = field(default_factory=dict)
    """Under way, by handle."""
    error: str = ""
    """No more of it begins."""
    failed: bool = False

    @property
    def whole(self) -> bool:
        return self.begun == len(self.read.local)


class Mover:
    """The transports of one engine, best first. `tell` gets the news. `at_once`: pieces under way at most, over all
    links."""

    def __init__(
        self,
        own: PeerMetadata,
        transports: Rows[Transport],
        clock: Clock,
        tell: Callable[[News], None],
        at_once: int,
    ) -> None:
        self._transports = transports
        self._block_bytes = own.block_bytes
        self._clock = clock
        self._tell = tell
        self._at_once = at_once
        self._links = Links(own, transports, clock, tell)
        self._waiting: ReadOrder[_Reading] = ReadOrder()
        self._active: list[_Reading] = []
        self._free = at_once

    @property
    def moving(self) -> bool:
        """Something is to be polled."""
        return bool(self._active or len(self._waiting)) or self._links.moving

    def take(self, order: Order) -> None:
        match order:
            case Read():
                self._waiting.add(_Reading(order), order.last)
            case Forget(transfer_id):
                for reading in self._waiting:
                    if reading.read.transfer_id == transfer_id:
                        self._break_off(reading, "no longer wanted")
            case kv.LinkPeer():
                self._links.order(order)
            case kv.FetchedBytes():
                for transport in self._transports:
                    if isinstance(transport, RelayTransport):
                        transport.fetched(order)

    def turn(self) -> bool:
        """Polls what is under way and begins what waits. True where something came to its end."""
        self._links.turn()
        over = sum([self._look(reading) for reading in list(self._active)])
        for reading in self._waiting:
            if reading.read.last or not self._held_back:
                self._go_on(reading)
        return over > 0

    def close(self) -> bool:
        """False where something may still write to the pool: neither it nor the transports may be let go."""
        for reading in self._waiting:
            self._break_off(reading, "the engine stops")
        if not self._links.close() or self._active:
            return False
        for transport in self._transports:
            transport.close()
        return True

    @property
    def _held_back(self) -> bool:
        """Pre-copies begin nothing while a last read is under way, which would share its link with them."""
        return not self._waiting.others_first and any(reading.read.last for reading in self._active)

    def _look(self, reading: _Reading) -> int:
        """How many of its pieces have come to their end."""
        transport, over = reading.transport, 0
        assert transport is not None
        for handle in list(reading.pieces):
            progress = transport.poll(handle)
            if progress is Progress.PENDING:
                continue
            over += 1
            self._free += 1
            piece = reading.pieces.pop(handle)
            if progress is Progress.FAILED:
                reading.failed, reading.error = True, "the transfer failed"
            elif piece.bytes_at_once >= PIECE_BYTES:  # less says how long a transfer takes to begin and end
                took_us = max(self._clock.now_us() - piece.began_us, 1)
                self._links.measured(reading.read.peer, piece.bytes_at_once / took_us / 1_000)
        if over and reading.error:
            self._break_off(reading, reading.error)
        elif over and reading.whole and not reading.pieces:
            self._over(reading)
        return over

    def _go_on(self, reading: _Reading) -> None:
        """Begins as much of it as may be."""
        read = reading.read
        if self._clock.now_us() >= read.due_us:
            when = "it ended" if reading.begun else "it began"
            self._break_off(reading, f"its time was over before {when}")
            return
        try:
            transport = reading.transport or self._links.transport(read.peer)
            if transport is None:
                return
            # Pre-copies leave slots to each other: one slow peer must not have them all.
            blocks, pieces = (len(read.local), 1) if read.last else (self._piece(read.peer), max(self._at_once // 2, 1))
            while self._free and len(reading.pieces) < pieces and not reading.whole:
                self._begin(reading, transport, blocks)
        except LinkError as error:
            self._break_off(reading, str(error))

    def _piece(self, peer: str) -> int:
        """Blocks, of which all slots full are under way for IN_FLIGHT_US."""
        in_flight = self._links.gigabytes_per_s(peer) * 1_000 * IN_FLIGHT_US
        return max(int(max(in_flight / self._at_once, PIECE_BYTES) / self._block_bytes), 1)

    def _begin(self, reading: _Reading, transport: Transport, blocks: int) -> None:
        read, piece = reading.read, slice(reading.begun, reading.begun + blocks)
        now_us, local = self._clock.now_us(), read.local[piece]
        handle = transport.post(read.peer, read.lease_id, read.remote[piece], local)
        at_once = self._at_once - self._free + 1
        reading.pieces[handle] = _Piece(now_us, len(local) * self._block_bytes * at_once)
        if reading.transport is None:
            reading.transport, reading.began_us = transport, now_us
            self._links.began(read.peer)
            self._active.append(reading)
        self._free -= 1
        reading.begun += len(local)
        self._waiting.began(reading)
        if reading.whole:
            self._waiting.remove(reading)

    def _break_off(self, reading: _Reading, why: str) -> None:
        """No more of it begins; it is over once what is under way is."""
        reading.error = reading.error or why
        self._waiting.remove(reading)
        if not reading.pieces:
            self._over(reading)

    def _over(self, reading: _Reading) -> None:
        transfer_id = reading.read.transfer_id
        if reading.transport is None:
            self._tell(ReadOver(transfer_id, error=reading.error))
            return
        self._active.remove(reading)
        took_us = self._clock.now_us() - reading.began_us
        self._tell(ReadOver(transfer_id, reading.transport.name, took_us, reading.error))
        self._links.ended(reading.read.peer, reading.failed)
