"""How a gather cuts its blocks: every byte is copied once, from the right place, whatever the grid."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_worker.cuda.pieces import SMALLEST_PIECE, WASTE, cut

TILES = [512, 1_024, 4_096, 32_768]


@given(
    vectors=st.integers(1, 700),
    tile=st.sampled_from(TILES),
    programs=st.integers(1, 40),
    moved=st.integers(1, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_what_the_programs_copy_is_what_was_asked_for(
    vectors: int, tile: int, programs: int, moved: int, seed: int
) -> None:
    size, total = 16 * vectors, moved + 5
    pieces, chance = cut(size, tile), np.random.default_rng(seed)
    source = chance.integers(0, 256, (total, size), dtype=np.uint8)
    remote, local = chance.permutation(total)[:moved], chance.permutation(total)[:moved]
    target = np.full((total, size), 7, dtype=np.uint8)
    written = np.zeros((total, size), dtype=np.int64)
    for program in range(programs):
        for index, start, length in pieces.spans(moved, program, programs):
            assert 0 < length <= pieces.piece_bytes and start % 16 == 0 and length % 16 == 0
            target[local[index], start : start + length] = source[remote[index], start : start + length]
            written[local[index], start : start + length] += 1
    expected = np.full((total, size), 7, dtype=np.uint8)
    expected[local] = source[remote]
    assert np.array_equal(target, expected)
    assert (written[local] == 1).all() and written.sum() == moved * size


@given(vectors=st.integers(1, 1 << 20), tile=st.sampled_from(TILES))
def test_lanes_idle_little(vectors: int, tile: int) -> None:
    pieces = cut(16 * vectors, tile)
    assert pieces.piece_bytes * pieces.rows == tile
    idle = pieces.parts * pieces.piece_bytes - pieces.block_bytes
    assert pieces.piece_bytes == SMALLEST_PIECE or idle <= WASTE * pieces.block_bytes
    assert pieces.whole == (idle == 0)


def test_usual_blocks_are_cut_without_waste() -> None:
    sizes = {16_384: (16_384, 2), 65_536: (32_768, 1), 8 << 20: (32_768, 1), 12_288: (4_096, 8)}
    assert {size: (cut(size, 32_768).piece_bytes, cut(size, 32_768).rows) for size in sizes} == sizes
    assert all(cut(size, 32_768).whole for size in sizes)


@pytest.mark.parametrize("size", [0, -16, 8, 17, 4_104])
def test_blocks_that_16_does_not_divide_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        cut(size, 32_768)


@pytest.mark.parametrize("tile", [0, 256, 513, 33_000])
def test_tiles_are_powers_of_two(tile: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        cut(16, tile)
