"""One step's input: every chunk's tokens in one row, and where their keys and values go."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from hyperflexis_worker.steps.step_plan import Chunk


@dataclass(frozen=True, slots=True)
class Group:
    """`sequences` neighbours in the batch with `queries` tokens each: a set of decodes, or one prefill chunk."""

    first: int
    sequences: int
    queries: int
    table: Tensor
    """[sequences, blocks], padded with the reserved block 0."""

    @property
    def tokens(self) -> slice:
        return slice(self.first, self.first + self.sequences * self.queries)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Decodes first, shortest context first; then prefill chunks. All tensors are int64 on the device."""

    tokens: Tensor
    positions: Tensor
    blocks: Tensor
    """The block each token is written to, and its place in it."""
    offsets: Tensor
    groups: tuple[Group, ...]
    sampling_rows: Tensor
    """Row of each sampling chunk's last token, in the order the chunks were given."""


def pack(chunks: Rows[Chunk], block_tokens: int, device: torch.device) -> PackedBatch:
    """Builds a step on the host and moves it to the device in one copy."""
    order = sorted(range(len(chunks)), key=lambda i: (chunks[i].length > 1, chunks[i].start))
    tokens: list[int] = []
    positions: list[int] = []
    blocks: list[int] = []
    last_rows = [0] * len(chunks)
    for index in order:
        chunk = chunks[index]
        end = chunk.start + chunk.length
        owned = chunk.sequence.blocks
        tokens += chunk.sequence.tokens(chunk.start, chunk.length)
        positions += range(chunk.start, end)
        blocks += [owned[position // block_tokens] for position in range(chunk.start, end)]
        last_rows[index] = len(tokens) - 1
    members = _members([chunks[i] for i in order], block_tokens)
    tables = [_table(group, block_tokens) for group in members]
    sampling = [row for row, chunk in zip(last_rows, chunks, strict=True) if chunk.samples]
    flat = [*tokens, *positions, *blocks, *sampling, *chain.from_iterable(tables)]
    sizes = [len(tokens), len(tokens), len(tokens), len(sampling), *(len(table) for table in tables)]
    moved = torch.split_with_sizes(torch.tensor(flat, dtype=torch.int64).to(device, non_blocking=True), sizes)
    groups, first = [], 0
    for group, table in zip(members, moved[4:], strict=True):
        groups.append(Group(first, len(group), group[0].length, table.view(len(group), -1)))
        first += len(group) * group[0].length
    return PackedBatch(moved[0], moved[1], moved[2], moved[1] % block_tokens, tuple(groups), moved[3])


def _members(chunks: Rows[Chunk], block_tokens: int) -> list[list[Chunk]]:
    """Decodes together while the longest context is at most twice the shortest: they are padded to one length."""
    groups: list[list[Chunk]] = []
    for chunk in chunks:
        if chunk.length == 1 and groups and chunk.start <= 2 * groups[-1][0].start + 4 * block_tokens:
            groups[-1].append(chunk)
        else:
            groups.append([chunk])
    return groups


def _table(group: Rows[Chunk], block_tokens: int) -> list[int]:
    """Block ids of the group, row after row, each padded to the longest."""
    counts = [-(-(chunk.start + chunk.length) // block_tokens) for chunk in group]
    widest = max(counts)
    table: list[int] = []
    for chunk, count in zip(group, counts, strict=True):
        table += chunk.sequence.blocks[:count]
        table += [0] * (widest - count)
    return table
