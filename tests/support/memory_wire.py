"""A Transport between pools of one process that moves exactly when, and as far as, its test says."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

from hyperflexis_worker.kv.transport import LinkError, Progress, Storage


@dataclass
class Move:
    """One transfer. It reads when it moves, not when it was posted: what is there by then, as a one-sided read does."""

    source: Storage
    target: Storage
    remote: tuple[int, ...]
    local: tuple[int, ...]
    done: int = 0
    failed: bool = False

    @property
    def terminal(self) -> bool:
        return self.failed or self.done == len(self.local)

    def fail(self) -> None:
        """It ends here, unless it was over: nothing more of it arrives."""
        self.failed = not self.terminal or self.failed

    def move(self, blocks: int = 1 << 30) -> None:
        """So many blocks more; a transfer that failed moves nothing."""
        while blocks and not self.terminal:
            data = self.source.read([self.remote[self.done]])
            self.target.write([self.local[self.done]], data)
            self.done += 1
            blocks -= 1


@dataclass
class MemoryWire:
    """All pools that can be reached, by what their transports tell; `held`: transfers wait for their test."""

    pools: dict[str, Storage] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    held: bool = False
    unreachable: set[str] = field(default_factory=set)
    lives: int = 0


class MemoryTransport:
    name = "peer"

    def __init__(self, engine_name: str, storage: Storage, wire: MemoryWire) -> None:
        self._storage = storage
        self._wire = wire
        wire.lives += 1
        self._key = f"{engine_name}#{wire.lives}"
        self._peers: dict[str, str] = {}
        self._moves: dict[int, Move] = {}
        self._handles = 0
        wire.pools[self._key] = storage

    def metadata(self) -> bytes:
        return self._key.encode()

    def connect(self, peer: str, metadata: bytes) -> None:
        if peer in self._wire.unreachable or metadata.decode() not in self._wire.pools:
            raise LinkError(f"{peer} is not to be reached")
        self._peers[peer] = metadata.decode()

    def disconnect(self, peer: str) -> None:
        self._peers.pop(peer, None)

    def post(self, peer: str, lease_id: int, remote: Rows[int], local: Rows[int]) -> int:
        source = self._wire.pools.get(self._peers.get(peer, ""))
        if source is None:
            raise LinkError(f"no link to {peer}")
        self._handles += 1
        move = Move(source, self._storage, tuple(remote), tuple(local))
        self._moves[self._handles] = move
        if lease_id:  # probes are not what tests are about
            self._wire.moves.append(move)
        if not lease_id or not self._wire.held:
            move.move()
        return self._handles

    def poll(self, handle: int) -> Progress:
        move = self._moves[handle]
        if not move.terminal:
            return Progress.PENDING
        del self._moves[handle]
        return Progress.FAILED if move.failed else Progress.DONE

    def used(self, peer: str) -> str:
        return "memory"

    def close(self) -> None:
        self._wire.pools.pop(self._key, None)
