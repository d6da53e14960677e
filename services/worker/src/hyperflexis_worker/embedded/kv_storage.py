"""The bytes of a torch pool, on the CPU or on a GPU."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor


class TorchStorage:
    """A Storage over a contiguous tensor [block, ...], which it keeps alive."""

    def __init__(self, pool: Tensor, layout: bytes) -> None:
        if not pool.is_contiguous():
            raise ValueError("the blocks of a pool lie one after the other")
        self._bytes = pool.view(torch.uint8).view(pool.shape[0], -1)
        self.layout = layout
        self.total, self.block_bytes = self._bytes.shape
        self.address = pool.data_ptr()
        self.device = pool.device.index or 0 if pool.is_cuda else -1

    def read(self, blocks: Rows[int]) -> bytes:
        return self._bytes[list(blocks)].cpu().numpy().tobytes()

    def write(self, blocks: Rows[int], data: bytes) -> None:
        if len(data) != len(blocks) * self.block_bytes:
            raise ValueError(f"{len(data)} bytes for {len(blocks)} blocks of {self.block_bytes}")
        if not blocks:
            return
        rows = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(len(blocks), -1)
        self._bytes[list(blocks)] = rows.to(self._bytes.device)
        if self._bytes.is_cuda:
            torch.cuda.synchronize(self._bytes.device)
