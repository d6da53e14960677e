"""The weights: one arena of bytes, and the manifest that says what lies where in it.

q, k, v and gate, up are fused while loading, so that a peer's arena is already what the decoder multiplies by and
moving it is a few contiguous copies.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hyperflexis_worker.embedded.mix64 import GOLDEN, MASK, mix64
from hyperflexis_worker.embedded.model_config import ModelConfig

ALIGNMENT = 256
"""Bytes. What vector loads and one-sided copies like, and a multiple of the checksum's word."""
CHECKSUM_WORDS = 1 << 17
"""Words hashed at a time: stays in cache on a CPU, bounds the scratch memory on a GPU."""
FLOATING = {"F64", "F32", "F16", "BF16"}


class WeightsError(ValueError):
    """The checkpoint's files and its config.json do not fit together."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor in the arena."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the arena's start, a multiple of ALIGNMENT."""
    length: int
    """Bytes, without the padding after it."""
    checksum: int
    """Unsigned 64 bits over the bytes and the zeros that pad them to ALIGNMENT."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in the arena: checkpoint tensors stacked along their first axis."""

    name: str
    sources: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.sources[0][1]
        return (sum(shape[0] for _, shape in self.sources), *first[1:])


class Weights:
    """Named views into one contiguous uint8 tensor."""

    def __init__(self, arena: Tensor, manifest: tuple[TensorEntry, ...]) -> None:
        self.arena = arena
        self.manifest = manifest
        self._views = {entry.name: _view(arena, entry) for entry in manifest}

    def __getitem__(self, name: str) -> Tensor:
        return self._views[name]

    def verify(self) -> None:
        """Raises WeightsError where the arena does not hold what the manifest promises."""
        found = _checksums(self.arena, self.manifest)
        wrong = [e.name for e, checksum in zip(self.manifest, found, strict=True) if e.checksum != checksum]
        if wrong:
            raise WeightsError(f"{len(wrong)} tensors differ from their checksum: {_some(wrong)}")


def slots(config: ModelConfig) -> Iterator[Slot]:
    """What the decoder needs, in the arena's order, with the checkpoint names it comes from."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim

    def one(name: str, source: str, *shape: int) -> Slot:
        return Slot(name, ((f"{source}.weight", shape),))

    yield one("embed", "model.embed_tokens", config.vocab_size, hidden)
    for layer in range(config.layers):
        mine, theirs = f"layers.{layer}", f"model.layers.{layer}"
        attention, mlp = f"{theirs}.self_attn", f"{theirs}.mlp"
        qkv = (("q_proj", q), ("k_proj", kv), ("v_proj", kv))
        yield one(f"{mine}.input_norm", f"{theirs}.input_layernorm", hidden)
        yield Slot(f"{mine}.qkv", tuple((f"{attention}.{name}.weight", (rows, hidden)) for name, rows in qkv))
        if config.qkv_bias:
            yield Slot(f"{mine}.qkv_bias", tuple((f"{attention}.{name}.bias", (rows,)) for name, rows in qkv))
        if config.qk_norm:
            yield one(f"{mine}.q_norm", f"{attention}.q_norm", config.head_dim)
            yield one(f"{mine}.k_norm", f"{attention}.k_norm", config.head_dim)
        yield one(f"{mine}.o", f"{attention}.o_proj", hidden, q)
        if config.o_bias:
            yield Slot(f"{mine}.o_bias", ((f"{attention}.o_proj.bias", (hidden,)),))
        yield one(f"{mine}.post_norm", f"{theirs}.post_attention_layernorm", hidden)
        gate_up = tuple((f"{mlp}.{name}.weight", (inner, hidden)) for name in ("gate_proj", "up_proj"))
        yield Slot(f"{mine}.gate_up", gate_up)
        yield one(f"{mine}.down", f"{mlp}.down_proj", hidden, inner)
        if config.mlp_bias:
            both = tuple((f"{mlp}.{name}.bias", (inner,)) for name in ("gate_proj", "up_proj"))
            yield Slot(f"{mine}.gate_up_bias", both)
            yield Slot(f"{mine}.down_bias", ((f"{mlp}.down_proj.bias", (hidden,)),))
    yield one("norm", "model.norm", hidden)
    if not config.tied_embeddings:
        yield one("lm_head", "lm_head", config.vocab_size, hidden)


def load_weights(directory: Path, config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Weights:
    """Streams a safetensors checkpoint into a new arena, at most one source tensor on the host at a time.

    Raises WeightsError before any tensor is read where names, shapes or types do not fit the config.
    """
    wanted = list(slots(config))
    where = _locate(directory)
    _check(wanted, where, config)
    offset, layout = 0, []
    for slot in wanted:
        length = prod(slot.shape) * dtype.itemsize
        layout.append(TensorEntry(slot.name, str(dtype).removeprefix("torch."), slot.shape, offset, length, 0))
        offset += _padded(length)
    arena = torch.zeros(offset, dtype=torch.uint8, device=device)
    for slot, entry in zip(wanted, layout, strict=True):
        _fill(_view(arena, entry), slot, where)
    sums = _checksums(arena, layout)
    manifest = (
        TensorEntry(e.name, e.dtype, e.shape, e.offset, e.length, checksum)
        for e, checksum in zip(layout, sums, strict=True)
    )
    return Weights(arena, tuple(manifest))


def _locate(directory: Path) -> dict[str, Path]:
    """The file that holds each tensor of the checkpoint."""
    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = _shards(index)
    where: dict[str, Path] = {}
    for file in files:
        path = directory / file
        if not path.is_file():
            raise WeightsError(f"{directory} lacks {file}: only safetensors checkpoints can be loaded")
        try:
            with safe_open(path, framework="pt") as tensors:
                names = list(tensors.keys())
        except SafetensorError as error:
            raise WeightsError(f"{path} is not a safetensors file: {error}") from error
        twice = [name for name in names if name in where]
        if twice:
            raise WeightsError(f"{path} repeats tensors of another shard: {_some(twice)}")
        where.update(dict.fromkeys(names, path))
    return where


def _shards(index: Path) -> list[str]:
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not files or not all(file and Path(file).name == file for file in files):
            raise ValueError("weight_map must name files of this directory")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index} is no index of shards: {type(error).__name__}: {error}") from error
    return files


def _check(wanted: list[Slot], where: Mapping[str, Path], config: ModelConfig) -> None:
    shapes = dict(source for slot in wanted for source in slot.sources)
    missing = sorted(shapes.keys() - where.keys())
    if missing:
        raise WeightsError(f"the checkpoint lacks {len(missing)} tensors of its config.json: {_some(missing)}")
    # Older checkpoints store the rotation's frequencies; tied ones may store the embedding a second time.
    ignored = {"lm_head.weight"} if config.tied_embeddings else set()
    surplus = [n for n in where if n not in shapes and n not in ignored and not n.endswith("rotary_emb.inv_freq")]
    if surplus:
        raise WeightsError(
            f"the checkpoint has {len(surplus)} tensors its config.json does not: {_some(sorted(surplus))}"
        )
    for path in sorted(set(where.values())):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys() & shapes.keys():
                header = tensors.get_slice(name)
                if tuple(header.get_shape()) != shapes[name]:
                    raise WeightsError(f"{name} has shape {header.get_shape()}, config.json says {list(shapes[name])}")
                if header.get_dtype() not in FLOATING:
                    raise WeightsError(f"{name} is {header.get_dtype()}: quantised checkpoints are not supported")


def _fill(view: Tensor, slot: Slot, where: Mapping[str, Path]) -> None:
    row = 0
    for name, shape in slot.sources:
        with safe_open(where[name], framework="pt") as tensors:
            view[row : row + shape[0]].copy_(tensors.get_tensor(name))
        row += shape[0]


def _view(arena: Tensor, entry: TensorEntry) -> Tensor:
    dtype: torch.dtype = getattr(torch, entry.dtype)
    return arena[entry.offset : entry.offset + entry.length].view(dtype).view(entry.shape)


def _checksums(arena: Tensor, entries: list[TensorEntry] | tuple[TensorEntry, ...]) -> list[int]:
    """Sums of hash(word, position), where the arena lies: one number a tensor is all that leaves the device."""
    words = arena.view(torch.int64)
    sums = []
    for entry in entries:
        first, count = entry.offset // 8, _padded(entry.length) // 8
        total = torch.zeros((), dtype=torch.int64, device=arena.device)
        for start in range(0, count, CHECKSUM_WORDS):
            stop = min(start + CHECKSUM_WORDS, count)
            positions = torch.arange(start, stop, device=arena.device).mul_(GOLDEN)
            total += mix64(positions.bitwise_xor_(words[first + start : first + stop])).sum()
        sums.append(total)
    return [checksum & MASK for checksum in torch.stack(sums).tolist()]


def _padded(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
