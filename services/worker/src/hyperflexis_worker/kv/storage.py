"""The bytes of a KV pool in host memory."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class HostStorage:
    """A Storage over an array uint8 [total, block_bytes], C-contiguous. It keeps the array alive, not a copy of it."""

    device = -1

    def __init__(self, blocks: Bytes, layout: bytes) -> None:
        if not blocks.flags.c_contiguous:
            raise ValueError("the blocks of a pool lie one after the other")
        self._blocks = blocks
        self.layout = layout
        self.total, self.block_bytes = blocks.shape
        self.address = blocks.ctypes.data

    def read(self, blocks: Rows[int]) -> bytes:
        return self._blocks[list(blocks)].tobytes()

    def write(self, blocks: Rows[int], data: bytes) -> None:
        if len(data) != len(blocks) * self.block_bytes:
            raise ValueError(f"{len(data)} bytes for {len(blocks)} blocks of {self.block_bytes}")
        self._blocks[list(blocks)] = np.frombuffer(data, np.uint8).reshape(len(blocks), -1)
