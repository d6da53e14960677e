"""How a gather cuts blocks into what its programs copy: arithmetic only, the same as in the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VECTOR_BYTES = 16
SMALLEST_PIECE = 512
"""Bytes: what the 32 threads of a warp read at once."""
WASTE = 1 / 16
"""Share of lanes that may idle at a block's end for the sake of longer pieces."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A block is `parts` pieces of `piece_bytes`, the last of them perhaps cut short; a program copies a tile of
    `rows` pieces at a time, and tiles go round the programs."""

    block_bytes: int
    piece_bytes: int
    rows: int

    @property
    def parts(self) -> int:
        return -(-self.block_bytes // self.piece_bytes)

    @property
    def whole(self) -> bool:
        """No piece is cut short."""
        return self.block_bytes % self.piece_bytes == 0

    def tiles(self, blocks: int) -> int:
        return -(-blocks * self.parts // self.rows)

    def spans(self, blocks: int, program: int, programs: int) -> Iterator[tuple[int, int, int]]:
        """(position in the lists, first byte within the block, bytes) of all that one program copies, in order."""
        for tile in range(program, self.tiles(blocks), programs):
            for piece in range(tile * self.rows, min((tile + 1) * self.rows, blocks * self.parts)):
                index, part = divmod(piece, self.parts)
                start = part * self.piece_bytes
                yield index, start, min(self.piece_bytes, self.block_bytes - start)


def cut(block_bytes: int, tile_bytes: int) -> Pieces:
    """Pieces as long as can be without much waste. `tile_bytes`: a power of two, what a program has in flight.
    Raises ValueError where blocks are no multiple of 16 bytes."""
    if block_bytes <= 0 or block_bytes % VECTOR_BYTES:
        raise ValueError(f"blocks must be a multiple of {VECTOR_BYTES} bytes, not {block_bytes}")
    if tile_bytes < SMALLEST_PIECE or tile_bytes & (tile_bytes - 1):
        raise ValueError(f"tiles must be a power of two of at least {SMALLEST_PIECE} bytes, not {tile_bytes}")
    piece = tile_bytes
    while piece > SMALLEST_PIECE and -block_bytes % piece > WASTE * block_bytes:
        piece //= 2
    return Pieces(block_bytes, piece, tile_bytes // piece)
