"""Token ids on the wire: packed unsigned 32-bit little-endian."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable


def pack(token_ids: Iterable[int]) -> bytes:
    """Packs token ids. Raises ValueError for one outside [0, 2**32)."""
    try:
        column = array("I", token_ids)
    except OverflowError as error:
        raise ValueError("token ids must lie in [0, 2**32)") from error
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def unpack(packed: bytes) -> tuple[int, ...]:
    """Unpacks token ids. Raises ValueError where the length is no multiple of four."""
    column = array("I")
    column.frombytes(packed)
    if sys.byteorder == "big":
        column.byteswap()
    return tuple(column)
