"""The KV pool: ONE tensor [block, layer, kv_head, key|value, token, dim].

Block-major across the layers: a block of all layers is one contiguous region, so moving a request's cache is one
copy a block. Rows are addressed in 64-bit integers: block times stride passes 2**31 on a real GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor

from hyperflexis_worker.embedded.kv_storage import TorchStorage
from hyperflexis_worker.embedded.model_config import ModelConfig

Allocate = Callable[[int, torch.device], Tensor]
"""Bytes, and where: uint8, at least so many. On a GPU that peers read from it is cuda.pool_memory's."""


def plain_memory(nbytes: int, device: torch.device) -> Tensor:
    return torch.empty(nbytes, dtype=torch.uint8, device=device)


class KvPool:
    """Storage only; who owns which block is steps.blocks' business."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        allocate: Allocate = plain_memory,
    ) -> None:
        shape = (num_blocks, config.layers, config.kv_heads, 2, block_tokens, config.head_dim)
        nbytes = prod(shape) * dtype.itemsize
        # Zeroed once: whatever is read beyond a sequence's end must at least be a number.
        self.tensor = allocate(nbytes, device)[:nbytes].view(dtype).view(shape).zero_()
        self.block_tokens = block_tokens
        self._tokens = self.tensor.view(-1, config.head_dim)
        self._tiles = self.tensor.view(-1, block_tokens * config.head_dim)
        self._layer_tiles = config.kv_heads * 2
        self._block_tiles = config.layers * self._layer_tiles
        tiles = torch.arange(self._layer_tiles, device=device).view(config.kv_heads, 2)
        self._head_tiles = tiles.unsqueeze(-1)
        """[kv_head, 2, 1]: a head's key and value tile within a layer of a block."""
        self._head_rows = tiles.t().contiguous() * block_tokens
        """[2, kv_head]: the same for rows of one token."""

    @property
    def block_bytes(self) -> int:
        return self.tensor[0].nbytes

    def storage(self, layout: bytes) -> TorchStorage:
        """Its bytes, as transports see them."""
        return TorchStorage(self.tensor, layout)

    def rows(self, blocks: Tensor, offsets: Tensor) -> Tensor:
        """Where tokens at (block, offset) [n] lie in layer 0, for `store`."""
        rows = (blocks * (self._block_tiles * self.block_tokens) + offsets).view(-1, 1, 1)
        return (rows + self._head_rows).view(-1)

    def store(self, layer: int, rows: Tensor, keys_values: Tensor) -> None:
        """Writes [n, 2, kv_head, head_dim]."""
        shift = layer * self._layer_tiles * self.block_tokens
        self._tokens.index_copy_(0, rows + shift, keys_values.reshape(rows.shape[0], -1))

    def tiles(self, table: Tensor) -> Tensor:
        """Where the blocks of `table` [n, blocks] lie in layer 0, for `gather`: [n, kv_head, 2, blocks]."""
        return (table * self._block_tiles).view(table.shape[0], 1, 1, -1) + self._head_tiles

    def gather(self, layer: int, tiles: Tensor) -> Tensor:
        """A copy of those blocks: [n, kv_head, 2, blocks * block_tokens, head_dim]."""
        flat = self._tiles.index_select(0, (tiles + layer * self._layer_tiles).view(-1))
        return flat.view(*tiles.shape[:3], tiles.shape[3] * self.block_tokens, -1)
