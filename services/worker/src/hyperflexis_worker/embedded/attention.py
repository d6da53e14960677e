"""Attention over the paged pool: the interface, and the plain-torch implementation that defines what is right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hyperflexis_worker.embedded.batch import Group, PackedBatch
from hyperflexis_worker.embedded.kv_pool import KvPool


class AttentionBackend(Protocol):
    """Causal attention of a step's tokens over everything their sequences have in the pool."""

    def begin(self, batch: PackedBatch) -> None:
        """Once a step, before its first layer."""
        ...

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        """[tokens, heads, head_dim] to the same shape; the step's own keys and values are in the pool already."""
        ...


@dataclass(frozen=True, slots=True)
class _Step:
    group: Group
    tiles: Tensor
    bias: Tensor
    """[sequences, 1, queries, 1, length]: -inf at the positions that a query must not see, else 0."""
    beyond: Tensor
    """Rows of what is gathered, seen as [rows, head_dim], that lie after their sequence's end."""


class ReferenceAttention:
    """Gathers each group's blocks, then two matrix products with the query heads of a kv head as further queries."""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self._steps: list[_Step] = []

    def begin(self, batch: PackedBatch) -> None:
        self._steps = []
        for group in batch.groups:
            positions = batch.positions[group.tokens].view(group.sequences, group.queries)
            length = group.table.shape[1] * self._pool.block_tokens
            future = torch.arange(length, device=positions.device) > positions.unsqueeze(-1)
            tiles = self._pool.tiles(group.table)
            beyond = future[:, -1].view(-1, 1, 1, length).expand(*tiles.shape[:3], -1).flatten().nonzero().squeeze(1)
            precise = torch.promote_types(self._pool.tensor.dtype, torch.float32)
            bias = torch.zeros(future.shape, dtype=precise, device=future.device)
            bias = bias.masked_fill_(future, float("-inf")).view(group.sequences, 1, group.queries, 1, length)
            self._steps.append(_Step(group, tiles, bias, beyond))

    def attend(self, layer: int, queries: Tensor) -> Tensor:
        parts = [self._attend_group(layer, queries[step.group.tokens], step) for step in self._steps]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_group(self, layer: int, queries: Tensor, step: _Step) -> Tensor:
        count, (_, heads, dim) = step.group.sequences, queries.shape
        cached = self._pool.gather(layer, step.tiles)
        # What lies beyond the end may be anything: zero times NaN is NaN, so weights of zero are not enough.
        cached.view(-1, dim).index_fill_(0, step.beyond, 0)
        # Scores, softmax and mixture in single precision at least: rounding them to bfloat16 as well cost a fifth
        # of all error against float32 on 8B shapes.
        precise = torch.promote_types(cached.dtype, torch.float32)
        keys, values = cached.to(precise).unbind(2)
        kv_heads, length = keys.shape[1], keys.shape[2]
        grouped = queries.to(precise).view(count, -1, kv_heads, heads // kv_heads, dim).transpose(1, 2)
        folded = grouped.reshape(count, kv_heads, -1, dim)
        scores = (folded * dim**-0.5) @ keys.transpose(-1, -2)
        scores.view(*grouped.shape[:-1], length).add_(step.bias)
        mixed = torch.matmul(scores.softmax(-1), values)
        return mixed.view(grouped.shape).transpose(1, 2).reshape(-1, heads, dim).to(cached.dtype)
