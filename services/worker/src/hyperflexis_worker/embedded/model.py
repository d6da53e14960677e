"""The decoder: Llama, Qwen2 and Qwen3 in one class, over one packed batch of decodes and prefill chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from hyperflexis_worker.embedded.attention import AttentionBackend
from hyperflexis_worker.embedded.batch import PackedBatch
from hyperflexis_worker.embedded.kv_pool import KvPool
from hyperflexis_worker.embedded.model_config import ModelConfig
from hyperflexis_worker.embedded.weights import Weights


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    post_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class Decoder:
    """Weights, pool and attention put together. Stateless between steps but for what is in the pool."""

    def __init__(self, config: ModelConfig, weights: Weights, pool: KvPool, attention: AttentionBackend) -> None:
        self._config = config
        self._pool = pool
        self._attention = attention
        self._embed = weights["embed"]
        self._layers = [_layer(config, weights, index) for index in range(config.layers)]
        self._norm = weights["norm"]
        self._lm_head = self._embed if config.tied_embeddings else weights["lm_head"]
        self._frequencies = config.rope.frequencies(config.head_dim).to(self._embed.device)

    def forward(self, batch: PackedBatch) -> Tensor:
        """Logits [sampling rows, vocabulary]; keys and values of every token are in the pool afterwards."""
        self._attention.begin(batch)
        rows = self._pool.rows(batch.blocks, batch.offsets)
        rotation = self._rotation(batch.positions)
        hidden = F.embedding(batch.tokens, self._embed)
        for index, layer in enumerate(self._layers):
            hidden = hidden + self._attend(index, layer, self._normed(hidden, layer.input_norm), rows, rotation)
            both = F.linear(self._normed(hidden, layer.post_norm), layer.gate_up, layer.gate_up_bias)
            gate, up = both.chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down, layer.down_bias)
        return F.linear(self._normed(hidden[batch.sampling_rows], self._norm), self._lm_head)

    def _attend(
        self, index: int, layer: _Layer, hidden: Tensor, rows: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> Tensor:
        heads, kv_heads, dim = self._config.heads, self._config.kv_heads, self._config.head_dim
        qkv = F.linear(hidden, layer.qkv, layer.qkv_bias).view(-1, heads + 2 * kv_heads, dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            qkv[:, :heads] = self._normed(qkv[:, :heads], layer.q_norm)
            qkv[:, heads:-kv_heads] = self._normed(qkv[:, heads:-kv_heads], layer.k_norm)
        _rotate(qkv[:, :-kv_heads], *rotation)
        self._pool.store(index, rows, qkv[:, heads:])
        mixed = self._attention.attend(index, qkv[:, :heads])
        return F.linear(mixed.reshape(-1, heads * dim), layer.o, layer.o_bias)

    def _normed(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, self._config.norm_eps)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [tokens, 1, head_dim / 2], from single-precision angles as the models were trained with."""
        angles = (positions.float().unsqueeze(-1) * self._frequencies).unsqueeze(1)
        scale = self._config.rope.attention_factor
        return (angles.cos() * scale).to(self._embed.dtype), (angles.sin() * scale).to(self._embed.dtype)


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """In place; the pairs are (i, i + head_dim / 2)."""
    first, second = heads.chunk(2, dim=-1)
    rotated = second * cosine + first * sine
    first.mul_(cosine).sub_(second * sine)
    second.copy_(rotated)


def _layer(config: ModelConfig, weights: Weights, index: int) -> _Layer:
    name = f"layers.{index}"
    return _Layer(
        input_norm=weights[f"{name}.input_norm"],
        qkv=weights[f"{name}.qkv"],
        qkv_bias=weights[f"{name}.qkv_bias"] if config.qkv_bias else None,
        q_norm=weights[f"{name}.q_norm"] if config.qk_norm else None,
        k_norm=weights[f"{name}.k_norm"] if config.qk_norm else None,
        o=weights[f"{name}.o"],
        o_bias=weights[f"{name}.o_bias"] if config.o_bias else None,
        post_norm=weights[f"{name}.post_norm"],
        gate_up=weights[f"{name}.gate_up"],
        gate_up_bias=weights[f"{name}.gate_up_bias"] if config.mlp_bias else None,
        down=weights[f"{name}.down"],
        down_bias=weights[f"{name}.down_bias"] if config.mlp_bias else None,
    )
