"""Who owns which block of the KV pool, and which blocks can be found again by what they hold. Pure bookkeeping:
the bytes are elsewhere.

A block is owned by everyone who may still read or write it: sequences (several may share a prefix), leases of
exported caches, transfers under way (steps.holds). It is free when its last owner lets go, whoever that is; nothing
else makes it free. A full block may be published under the hash of everything up to its end: then it is kept after
its last owner has gone, least recently used first out, and the next sequence with this prefix owns it again.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Rows
from typing import NamedTuple

EVENT_LIMIT = 65_536
"""Cache events kept for the scheduler at most; beyond it the older ones are dropped and `lost` says so."""


class CacheEvents(NamedTuple):
    """What the prefix cache gained and lost since it was last asked, oldest first."""

    changes: list[tuple[bool, bytes]]
    """(stored, hash); stored = False: removed."""
    lost: bool
    """Some are missing: an index kept from them must start anew."""


class BlockPool:
    """`total` blocks of `block_tokens` tokens.

    Block 0 is never handed out: padding rows of a batch may write to it. A block's generation rises when it
    is allocated again, so that a reader of an older owner's bytes can tell.
    """

    def __init__(self, total: int, block_tokens: int, prefix_cache: bool = True) -> None:
        if total < 2 or block_tokens < 1:
            raise ValueError("a pool needs at least two blocks (one is reserved) of at least one token")
        self.total = total
        self.block_tokens = block_tokens
        self.prefix_cache = prefix_cache
        self.generations = [0] * total
        self._free = list(range(total - 1, 0, -1))
        self._owners = [0] * total
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Published blocks without an owner, least recently used first."""
        self._events: list[tuple[bool, bytes]] = []
        self._events_lost = False

    @property
    def free(self) -> int:
        """Blocks that could be allocated now, cached ones without an owner included."""
        return len(self._free) + len(self._idle)

    @property
    def cached(self) -> int:
        """Blocks that can be found by hash."""
        return len(self._hash_of)

    @property
    def usable(self) -> int:
        """Blocks that can ever be owned at once."""
        return self.total - 1

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def freed_by(self, blocks: Iterable[int]) -> int:
        """How many would become free if each of these (with repeats) lost an owner."""
        return sum(1 for block, times in Counter(blocks).items() if self._owners[block] == times)

    # --- ownership ---------------------------------------------------------------------------------------

    def allocate(self, count: int) -> list[int] | None:
        """`count` block ids with one owner each, or None (and nothing changed) where fewer are free."""
        if count > self.free:
            return None
        taken = [self._free.pop() if self._free else self._evict() for _ in range(count)]
        for block in taken:
            self._owners[block] = 1
            self.generations[block] += 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more owner for each. Raises ValueError for a block that holds nothing."""
        for block in blocks:
            if not self._owners[block] and block not in self._idle:
                raise ValueError(f"block {block} is not owned")
            self._idle.pop(block, None)
            self._owners[block] += 1

    def release(self, blocks: Rows[int]) -> None:
        """One owner fewer for each. Raises ValueError for one that has none: somebody frees twice."""
        for block in reversed(blocks):  # a prefix is worth more than what follows it: it leaves the cache later
            if not self._owners[block]:
                raise ValueError(f"block {block} is not owned")
            self._owners[block] -= 1
            if self._owners[block]:
                continue
            if block in self._hash_of:
                self._idle[block] = None
            else:
                self._free.append(block)

    # --- prefix cache ------------------------------------------------------------------------------------

    def publish(self, block: int, digest: bytes) -> None:
        """An owned block is full and computed: it may be found by the hash of its prefix.

        Where another block has that hash already, that one stays and this one remains private.
        """
        if not self._owners[block]:
            raise ValueError(f"block {block} is not owned")
        if self.prefix_cache and digest not in self._block_of and block not in self._hash_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest
            self._note(True, digest)

    def find(self, digests: Iterable[bytes]) -> list[int]:
        """Blocks of the longest prefix that is here; `share` them before anything is allocated."""
        found = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of these have no owner: sharing them leaves as many fewer free."""
        return sum(1 for block in blocks if block in self._idle)

    def forget_prefixes(self) -> None:
        """Empties the cache: what it holds no longer means the same (other weights)."""
        self._free.extend(self._idle)
        self._idle.clear()
        for digest in self._block_of:
            self._note(False, digest)
        self._block_of.clear()
        self._hash_of.clear()

    def take_events(self) -> CacheEvents:
        events = CacheEvents(self._events, self._events_lost)
        self._events, self._events_lost = [], False
        return events

    def _evict(self) -> int:
        block, _ = self._idle.popitem(last=False)
        digest = self._hash_of.pop(block)
        del self._block_of[digest]
        self._note(False, digest)
        return block

    def _note(self, stored: bool, digest: bytes) -> None:
        if len(self._events) >= EVENT_LIMIT:
            self._events, self._events_lost = [], True
        self._events.append((stored, digest))

    # --- check -------------------------------------------------------------------------------------------

    def check_integrity(self, owned: Iterable[int]) -> None:
        """Raises AssertionError unless `owned`, with repeats, is exactly what the pool believes."""
        counts = Counter(owned)
        wrong = [block for block in range(self.total) if self._owners[block] != counts[block]]
        if wrong:
            block = wrong[0]
            raise AssertionError(
                f"block {block} has {counts[block]} owners, the pool counts {self._owners[block]} ({len(wrong)} differ)"
            )
        if 0 in counts:
            raise AssertionError("the reserved block has an owner")
        places = Counter([*self._free, *self._idle, *counts])
        if len(places) != self.usable or max(places.values(), default=1) > 1:
            raise AssertionError(f"{self.usable - len(places)} blocks leaked, or one is free and owned at once")
        if {block: digest for digest, block in self._block_of.items()} != self._hash_of:
            raise AssertionError("the prefix index and the blocks' hashes differ")
