"""The transport that always works: bytes through both engines' shells, which talk gRPC to each other.

A read is cut into pieces, of which few are asked for at once. An answer is written by our own hand, so a read that has
failed is over at once: what is answered later is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import structlog

from hyperflexis_common.clock import Clock
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.kv.transport import LinkError, Progress, Storage

log = structlog.get_logger(__name__)

PIECE_BYTES = 4 * 2**20
"""One block is asked for in any case."""
PIECES_AT_ONCE = 4
ANSWER_LIMIT_US = 5_000_000
"""A piece that is not answered by then has failed."""


@dataclass(frozen=True, slots=True)
class _Piece:
    handle: int
    remote: tuple[int, ...]
    local: tuple[int, ...]


@dataclass(slots=True)
class _Asked:
    piece: _Piece
    since_us: int


@dataclass(slots=True)
class _Reading:
    peer: str
    lease_id: int
    left: int
    """Pieces."""
    error: str = ""


class RelayTransport:
    """A Transport. `ask` sends a FetchBytes to the shell; `fetched` takes its answer."""

    name = "grpc"

    def __init__(self, storage: Storage, clock: Clock, ask: Callable[[kv.FetchBytes], None]) -> None:
        self._storage = storage
        self._clock = clock
        self._ask = ask
        self._blocks = max(PIECE_BYTES // storage.block_bytes, 1)
        self._peers: set[str] = set()
        self._readings: dict[int, _Reading] = {}
        self._queue: deque[_Piece] = deque()
        self._asked: dict[int, _Asked] = {}
        self._handles = 0
        self._numbers = 0

    def metadata(self) -> bytes:
        return b""

    def connect(self, peer: str, metadata: bytes) -> None:
        self._peers.add(peer)

    def disconnect(self, peer: str) -> None:
        self._peers.discard(peer)

    def post(self, peer: str, lease_id: int, remote: Rows[int], local: Rows[int]) -> int:
        if peer not in self._peers:
            raise LinkError(f"no link to {peer}")
        self._handles += 1
        firsts = range(0, len(remote), self._blocks)
        self._readings[self._handles] = _Reading(peer, lease_id, len(firsts))
        for first in firsts:
            end = first + self._blocks
            self._queue.append(_Piece(self._handles, tuple(remote[first:end]), tuple(local[first:end])))
        self._ask_more()
        return self._handles

    def poll(self, handle: int) -> Progress:
        self._give_up_late()
        reading = self._readings[handle]
        if not reading.error and reading.left:
            return Progress.PENDING
        del self._readings[handle]
        if reading.error:
            log.warning("a peer's blocks did not come", peer=reading.peer, error=reading.error)
            return Progress.FAILED
        return Progress.DONE

    def fetched(self, answer: kv.FetchedBytes) -> None:
        """What the shell got; an answer to nothing that is still wanted is dropped."""
        asked = self._asked.pop(answer.number, None)
        if asked is not None:
            self._answered(asked.piece, answer)
        self._ask_more()

    def used(self, peer: str) -> str:
        return "grpc"

    def close(self) -> None:
        self._queue.clear()
        self._asked.clear()
        self._readings.clear()

    def _answered(self, piece: _Piece, answer: kv.FetchedBytes) -> None:
        reading = self._readings.get(piece.handle)
        if reading is None or reading.error:
            return
        if answer.error:
            reading.error = answer.error
            return
        try:
            self._storage.write(piece.local, answer.data)
        except ValueError as error:
            reading.error = str(error)
            return
        reading.left -= 1

    def _ask_more(self) -> None:
        while self._queue and len(self._asked) < PIECES_AT_ONCE:
            piece = self._queue.popleft()
            reading = self._readings.get(piece.handle)
            if reading is None or reading.error:
                continue
            self._numbers += 1
            self._asked[self._numbers] = _Asked(piece, self._clock.now_us())
            self._ask(kv.FetchBytes(self._numbers, reading.peer, reading.lease_id, list(piece.remote)))

    def _give_up_late(self) -> None:
        since_us = self._clock.now_us() - ANSWER_LIMIT_US
        late = [number for number, asked in self._asked.items() if asked.since_us <= since_us]
        for number in late:
            piece = self._asked.pop(number).piece
            if (reading := self._readings.get(piece.handle)) is not None:
                reading.error = reading.error or "not answered in time"
        if late:
            self._ask_more()
