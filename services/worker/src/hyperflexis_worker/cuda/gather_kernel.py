"""The kernel that reads a peer's blocks over NVLink. Imported where it runs: it needs Triton."""
# Its arguments are Triton's to type, when it is launched.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["total"])  # the length of a list must not decide whether a kernel is compiled
def gather_pieces(
    source_base,
    target_base,
    source_blocks,
    target_blocks,
    total,
    parts,
    block_bytes,
    ROWS: tl.constexpr,
    VECTORS: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Copies block source_blocks[i] of one pool onto target_blocks[i] of another, for `total` / `parts` values of i.

    The bases are addresses, not tensors: Triton takes no tensor of another device. A piece is VECTORS * 16 bytes; see
    pieces.Pieces. The grid may be of any size. The next tile's ids are on their way while this one's data is.
    """
    rows = tl.arange(0, ROWS)
    lanes = tl.arange(0, 2 * VECTORS)  # of 8 bytes
    step = tl.num_programs(0)
    ahead = tl.program_id(0) * ROWS + rows
    source_block = tl.load(source_blocks + ahead // parts, mask=ahead < total, other=0)
    target_block = tl.load(target_blocks + ahead // parts, mask=ahead < total, other=0)
    for tile in range(tl.program_id(0), tl.cdiv(total, ROWS), step):
        piece = tile * ROWS + rows
        start = (piece % parts).to(tl.int64) * (VECTORS * 16)
        there = (piece < total)[:, None]
        if not WHOLE:
            there = there & (start[:, None] + (lanes // 2 * 16)[None, :] < block_bytes)
        source = (source_base + source_block.to(tl.int64) * block_bytes + start).to(tl.pointer_type(tl.int64))
        target = (target_base + target_block.to(tl.int64) * block_bytes + start).to(tl.pointer_type(tl.int64))
        # An address from arithmetic is a multiple of nothing to the compiler, which would then copy word by word.
        source = tl.multiple_of(source, 16)
        target = tl.multiple_of(target, 16)
        data = tl.load(source[:, None] + lanes[None, :], mask=there)
        ahead = piece + step * ROWS
        source_block = tl.load(source_blocks + ahead // parts, mask=ahead < total, other=0)
        target_block = tl.load(target_blocks + ahead // parts, mask=ahead < total, other=0)
        tl.store(target[:, None] + lanes[None, :], data, mask=there)
