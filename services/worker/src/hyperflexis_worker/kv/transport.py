"""The seam between what moves and how it moves: one way of reading blocks out of a peer's pool into this one.

Transfers are one-sided reads by the target: the source need not act, and a source that is stopped or killed costs the
target an error or a wait, never wrong bytes under a valid lease. One thread owns a transport.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from enum import Enum
from typing import Protocol


class LinkError(Exception):
    """A peer cannot be reached by this transport; the message says why."""


class Progress(Enum):
    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    """Terminal too: nothing of it can arrive any more."""


class Storage(Protocol):
    """The bytes of a KV pool: `total` blocks of `block_bytes`, one after the other from `address` on."""

    total: int
    block_bytes: int
    address: int
    """Of block 0, in this process; on a GPU its device address."""
    device: int
    """CUDA device; -1 = host memory."""
    layout: bytes
    """Digest of everything that must agree for a block's bytes to mean the same in two pools."""

    def read(self, blocks: Rows[int]) -> bytes:
        """Their bytes, one block after the other."""
        ...

    def write(self, blocks: Rows[int], data: bytes) -> None:
        """The same the other way. Raises ValueError where the length is not theirs."""
        ...


class Transport(Protocol):
    """`peer` is the name of one life of one engine; a new life has another name."""

    name: str
    """As links report it, such as nixl, peer or grpc."""

    def metadata(self) -> bytes:
        """What a peer must know to read from this pool."""
        ...

    def connect(self, peer: str, metadata: bytes) -> None:
        """Makes a link; once it is there, nothing happens. Raises LinkError."""
        ...

    def disconnect(self, peer: str) -> None:
        """Ends a link; no transfer from this peer may be under way. Unknown peers are ignored."""
        ...

    def post(self, peer: str, lease_id: int, remote: Rows[int], local: Rows[int]) -> int:
        """Begins to read blocks `remote` of the peer, leased to us, into `local` of this pool, pairwise. Returns a
        handle to poll until it is terminal. Raises LinkError, and then nothing was begun."""
        ...

    def poll(self, handle: int) -> Progress:
        """How far it is; a handle is forgotten once its end has been told."""
        ...

    def used(self, peer: str) -> str:
        """The wire under a link, such as shm, tcp, cuda_ipc; empty where it cannot be told."""
        ...

    def close(self) -> None: ...
