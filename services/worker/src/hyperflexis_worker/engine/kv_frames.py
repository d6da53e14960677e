"""The messages between shell and engine that move caches: leases on this engine's blocks, reads of a peer's.

`number` is the asker's and comes back with the answer. An attempt is (request_id, leader_epoch, seq).
"""

from __future__ import annotations

import msgspec


class LinkPeer(msgspec.Struct, tag=True, frozen=True):
    """Make a link to one life of another engine, or end it. Answered by Linked."""

    peer: str
    metadata: bytes = b""
    """EngineReady.kv_metadata of the peer."""
    remove: bool = False


class Export(msgspec.Struct, tag=True, frozen=True):
    """Pin what a sequence has computed for a reader elsewhere. Answered by Exported, in order.

    `final` also takes the sequence out of the engine, between two steps: what it has then is all it will have, and
    the lease alone owns its blocks.
    """

    number: int
    """Of the asker's choice; Exported repeats it."""
    request_id: str
    leader_epoch: int
    seq: int
    from_block: int
    """Blocks before this one have been exported already."""
    lease_id: int
    """0 = a new lease; else that one takes the blocks in, and is renewed."""
    lease_us: int
    """From now on."""
    final: bool = False


class ExportPrefix(msgspec.Struct, tag=True, frozen=True):
    """Pin what is cached of a prompt for a reader elsewhere. Answered by Exported, in order."""

    number: int
    hashes: bytes
    """Of its full blocks from the first one on, chained and packed."""
    lease_us: int


class ReleaseLease(msgspec.Struct, tag=True, frozen=True):
    """Answered by Released."""

    number: int
    lease_id: int


class ReadBlocks(msgspec.Struct, tag=True, frozen=True):
    """The bytes of leased blocks, for a peer without a better transport. Answered by BlockBytes."""

    number: int
    lease_id: int
    blocks: list[int]


class Reserve(msgspec.Struct, tag=True, frozen=True):
    """Own blocks for `tokens` tokens of an attempt that will come with its cache. Answered by Reserved. Asked again
    for the same attempt, it grows."""

    request_id: str
    leader_epoch: int
    seq: int
    tokens: int


class ReservePrefix(msgspec.Struct, tag=True, frozen=True):
    """Own blocks for the beginning of a prompt: those that are cached here, and others after them. Answered by
    Reserved."""

    request_id: str
    leader_epoch: int
    seq: int
    hashes: bytes


class KeepPrefix(msgspec.Struct, tag=True, frozen=True):
    """End such a reservation: what was read into it can be found by these hashes from now on, and belongs to nobody."""

    request_id: str
    leader_epoch: int
    seq: int
    hashes: bytes


class Pull(msgspec.Struct, tag=True, frozen=True):
    """Read leased blocks of a peer into a reservation, from its block `first_block` on. Answered by Pulled."""

    number: int
    request_id: str
    leader_epoch: int
    seq: int
    peer: str
    lease_id: int
    first_block: int
    blocks: list[int]
    """Of the peer."""
    within_us: int
    """From now on; a transfer that takes longer has failed, though its blocks stay quarantined until it is over."""
    last: bool = False
    """The request stands still until they are here."""


class Unreserve(msgspec.Struct, tag=True, frozen=True):
    """Let a reservation go; blocks that a transfer may still write to stay quarantined."""

    request_id: str
    leader_epoch: int
    seq: int


class FetchedBytes(msgspec.Struct, tag=True, frozen=True):
    """Answers FetchBytes."""

    number: int
    data: bytes
    error: str = ""


class Linked(msgspec.Struct, tag=True, frozen=True):
    """What became of a LinkPeer; told again when a link dies."""

    peer: str
    transport: str = ""
    """Empty = there is no link."""
    gigabytes_per_s: float = 0.0
    """Measured by the warm-up transfer."""
    setup_us: int = 0
    error: str = ""
    wire: str = ""
    """Under the transport, as far as it can be told: shm, tcp, cuda_ipc."""


class Exported(msgspec.Struct, tag=True, frozen=True):
    number: int
    lease_id: int = 0
    blocks: list[int] = []
    """From Export.from_block on: the full ones, or all where it was final. Of a prefix: as many as are cached."""
    generations: list[int] = []
    computed: int = 0
    """Tokens, of prompt and output together, whose keys and values are in the sequence's blocks."""
    output: bytes = b""
    """Packed; where final: all output tokens."""
    error: str = ""
    """Not here, or it would pin too much of the pool."""
    full: bool = False
    """The latter."""


class Released(msgspec.Struct, tag=True, frozen=True):
    number: int
    held: bool
    """The lease was still alive: what was read under it is what was exported."""


class BlockBytes(msgspec.Struct, tag=True, frozen=True):
    number: int
    data: bytes = b""
    error: str = ""


class Reserved(msgspec.Struct, tag=True, frozen=True):
    request_id: str
    leader_epoch: int
    seq: int
    ok: bool
    free_blocks: int = 0
    cached: int = 0
    """Of a prefix, the first blocks: they were here."""


class Pulled(msgspec.Struct, tag=True, frozen=True):
    number: int
    request_id: str
    leader_epoch: int
    seq: int
    transport: str = ""
    bytes: int = 0
    took_us: int = 0
    error: str = ""


class FetchBytes(msgspec.Struct, tag=True, frozen=True):
    """The engine asks its shell to get leased blocks of a peer through that peer's shell."""

    number: int
    peer: str
    lease_id: int
    blocks: list[int]


class Wedged(msgspec.Struct, tag=True, frozen=True):
    """A transfer is not terminal long after its time: only a new process is safe. The shell drains and leaves."""

    message: str


CacheCommand = (
    LinkPeer
    | Export
    | ExportPrefix
    | ReleaseLease
    | ReadBlocks
    | Reserve
    | ReservePrefix
    | KeepPrefix
    | Pull
    | Unreserve
    | FetchedBytes
)
"""What a shell asks of its engine's caches."""
