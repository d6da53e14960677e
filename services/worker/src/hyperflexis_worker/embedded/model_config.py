"""What a checkpoint's config.json says, as far as the decoder needs it. Anything else it asks for is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperflexis_worker.embedded.config_fields import UnsupportedModel, flag, integer, number, strings
from hyperflexis_worker.embedded.rope import Rope

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
MOST_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder-only transformer. Three flags tell the supported families apart."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    context_length: int
    eos_token_ids: tuple[int, ...]
    """Ascending; empty where the checkpoint names none."""
    tied_embeddings: bool
    qkv_bias: bool
    """Of q, k and v: always in Qwen2, where `attention_bias` says so in the others."""
    o_bias: bool
    """Of the attention's output: where `attention_bias` says so, never in Qwen2."""
    mlp_bias: bool
    """Of gate, up and down: a Llama with `mlp_bias`."""
    qk_norm: bool
    """Qwen3: RMS norm over each head of q and k, before the rotation."""
    dtype: str
    """Of the checkpoint; the engine's own is a setting."""

    @classmethod
    def from_directory(cls, directory: Path) -> ModelConfig:
        """Reads config.json, and generation_config.json where there is one. Raises UnsupportedModel, OSError."""
        generation = directory / "generation_config.json"
        return cls.from_hf(_read_json(directory / "config.json"), _read_json(generation) if generation.exists() else {})

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelConfig:
        """From a config.json; end-of-sequence ids of a generation_config.json win, as in transformers."""
        family = _family(config)
        _refuse_unsupported(config)
        heads, hidden = integer(config, "num_attention_heads"), integer(config, "hidden_size")
        kv_heads = integer(config, "num_key_value_heads", heads)
        if heads % kv_heads:
            raise UnsupportedModel(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
        head_dim = integer(config, "head_dim", 128 if family == "qwen3" else hidden // heads)
        if head_dim % 2:
            raise UnsupportedModel(f"head_dim {head_dim} is odd: rotary embedding needs pairs")
        context = integer(config, "max_position_embeddings")
        attention_bias = flag(config, "attention_bias")
        eos = (generation or {}).get("eos_token_id")
        return cls(
            vocab_size=integer(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=integer(config, "intermediate_size"),
            layers=integer(config, "num_hidden_layers", below=MOST_LAYERS),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=number(config, "rms_norm_eps", 1e-6),
            rope=Rope.from_hf(config, context),
            context_length=context,
            eos_token_ids=_token_ids(config.get("eos_token_id") if eos is None else eos),
            tied_embeddings=flag(config, "tie_word_embeddings"),
            qkv_bias=family == "qwen2" or attention_bias,
            o_bias=family != "qwen2" and attention_bias,
            mlp_bias=family == "llama" and flag(config, "mlp_bias"),
            qk_norm=family == "qwen3",
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} holds no JSON object")
    return content


def _family(config: Mapping[str, Any]) -> str:
    names = strings(config, "architectures")
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise UnsupportedModel(f"architectures {names!r} is not supported; supported: {', '.join(sorted(ARCHITECTURES))}")


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    """Everything that would change the arithmetic and is not implemented."""
    plain = {"hidden_act": ("silu",), "pretraining_tp": (1,), "use_sliding_window": (False,)}
    for field, allowed in plain.items():
        value = config.get(field)
        if value is not None and value not in allowed:
            raise UnsupportedModel(f"{field} {value!r} is not supported; only {allowed[0]!r} is")
    if config.get("quantization_config"):
        raise UnsupportedModel("quantization_config is not supported: use an unquantised checkpoint")
    other = set(strings(config, "layer_types")) - {"full_attention"}
    if other:
        raise UnsupportedModel(f"layer_types {sorted(other)} is not supported; only 'full_attention' is")


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise UnsupportedModel(f"eos_token_id must be a token id or a list of them, got {value!r}")
    return tuple(sorted(set(ids)))
