"""Who owns which block of the KV pool. Pure bookkeeping: the bytes are elsewhere."""

from __future__ import annotations

from collections.abc import Iterable


class BlockPool:
    """`total` blocks of `block_tokens` tokens, each owned by at most one sequence.

    Block 0 is never handed out: padding rows of a batch may write to it. A block's generation rises when it
    is allocated again, so that a reader of an older owner's bytes can tell.
    """

    def __init__(self, total: int, block_tokens: int) -> None:
        if total < 2 or block_tokens < 1:
            raise ValueError("a pool needs at least two blocks (one is reserved) of at least one token")
        self.total = total
        self.block_tokens = block_tokens
        self.generations = [0] * total
        self._free = list(range(total - 1, 0, -1))
        self._owned = bytearray(total)

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def usable(self) -> int:
        """Blocks that can ever be owned at once."""
        return self.total - 1

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def allocate(self, count: int) -> list[int] | None:
        """`count` block ids, or None (and nothing changed) where fewer are free."""
        if count > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._owned[block] = 1
            self.generations[block] += 1
        return taken

    def release(self, blocks: Iterable[int]) -> None:
        """Returns blocks. Raises ValueError for one that is not owned: somebody frees twice."""
        for block in blocks:
            if not self._owned[block]:
                raise ValueError(f"block {block} is not owned")
            self._owned[block] = 0
            self._free.append(block)

    def check_integrity(self, owned: Iterable[int]) -> None:
        """Raises AssertionError unless `owned` are exactly the blocks handed out, each once."""
        blocks = list(owned)
        if len(set(blocks)) != len(blocks):
            raise AssertionError("a block has two owners")
        if len(blocks) + len(self._free) != self.usable or sum(self._owned) != len(blocks):
            raise AssertionError(f"{self.usable - len(blocks) - len(self._free)} blocks leaked")
