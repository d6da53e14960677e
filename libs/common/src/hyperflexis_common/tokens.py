"""Token ids on the wire: packed unsigned 32-bit little-endian, and the rolling CRC of a token prefix."""

from __future__ import annotations

import sys
import zlib
from array import array
from collections.abc import Iterable

TOKEN_BYTES = 4


def pack(tokens: Iterable[int]) -> bytes:
    """Token ids to packed u32 LE. Raises OverflowError for an id outside [0, 2**32)."""
    column = array("I", tokens)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def unpack(packed: bytes) -> list[int]:
    """Packed u32 LE to token ids. Raises ValueError where the length is no multiple of four."""
    if len(packed) % TOKEN_BYTES:
        raise ValueError(f"packed token ids must be a multiple of 4 bytes, got {len(packed)}")
    column = array("I")
    column.frombytes(packed)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tolist()


def pack_floats(values: Iterable[float]) -> bytes:
    """Packed 32-bit floats, little-endian."""
    column = array("f", values)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def unpack_floats(packed: bytes) -> list[float]:
    """Raises ValueError where the length is no multiple of four."""
    column = array("f")
    column.frombytes(packed)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tolist()


def count(packed: bytes | bytearray) -> int:
    """Number of token ids in a packed column."""
    return len(packed) // TOKEN_BYTES


def extend_crc(crc: int, packed: bytes) -> int:
    """CRC-32 of a prefix, extended by more packed tokens; start from 0."""
    return zlib.crc32(packed, crc)
