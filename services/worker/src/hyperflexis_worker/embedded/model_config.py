"""What a checkpoint's config.json says, as far as the decoder needs it. Anything else it asks for is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class UnsupportedModel(ValueError):
    """The checkpoint asks for something this engine does not do, or does not say what it needs to say."""


ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding; the fields after `kind` matter only to the kinds that scale."""

    theta: float = 10_000.0
    kind: str = "default"
    """default, linear or llama3."""
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0


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
    """Qwen2: q, k and v have a bias (o has none)."""
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
        _refuse_unsupported(config, family)
        heads, hidden = _integer(config, "num_attention_heads"), _integer(config, "hidden_size")
        kv_heads = _integer(config, "num_key_value_heads", heads)
        if heads % kv_heads:
            raise UnsupportedModel(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
        head_dim = _integer(config, "head_dim", 128 if family == "qwen3" else hidden // heads)
        if head_dim % 2:
            raise UnsupportedModel(f"head_dim {head_dim} is odd: rotary embedding needs pairs")
        context = _integer(config, "max_position_embeddings")
        eos = (generation or {}).get("eos_token_id")
        return cls(
            vocab_size=_integer(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_integer(config, "intermediate_size"),
            layers=_integer(config, "num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            norm_eps=_number(config, "rms_norm_eps", 1e-6),
            rope=_rope(config, context),
            context_length=context,
            eos_token_ids=_token_ids(config.get("eos_token_id") if eos is None else eos),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2",
            qk_norm=family == "qwen3",
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UnsupportedModel(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} holds no JSON object")
    return content


def _family(config: Mapping[str, Any]) -> str:
    names = config.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise UnsupportedModel(f"architectures {names!r} is not supported; supported: {', '.join(sorted(ARCHITECTURES))}")


def _refuse_unsupported(config: Mapping[str, Any], family: str) -> None:
    """Everything that would change the arithmetic and is not implemented."""
    plain = {"hidden_act": ("silu",), "mlp_bias": (False,), "pretraining_tp": (1,), "use_sliding_window": (False,)}
    if family != "qwen2":  # its bias is there whatever the field says
        plain["attention_bias"] = (False,)
    for field, allowed in plain.items():
        value = config.get(field)
        if value is not None and value not in allowed:
            raise UnsupportedModel(f"{field} {value!r} is not supported; only {allowed[0]!r} is")
    if config.get("quantization_config"):
        raise UnsupportedModel("quantization_config is not supported: use an unquantised checkpoint")
    other = set(config.get("layer_types") or ()) - {"full_attention"}
    if other:
        raise UnsupportedModel(f"layer_types {sorted(other)} is not supported; only 'full_attention' is")


def _rope(config: Mapping[str, Any], context: int) -> Rope:
    # transformers 5 writes rope_parameters with the theta inside, 4 wrote rope_theta and rope_scaling.
    field = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    scaling = config.get(field) or {}
    if not isinstance(scaling, Mapping):
        raise UnsupportedModel(f"{field} must be an object, got {scaling!r}")
    theta = _number(scaling if "rope_theta" in scaling else config, "rope_theta", 10_000.0)
    if _number(scaling, "partial_rotary_factor", _number(config, "partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModel("partial_rotary_factor other than 1.0 is not supported")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, kind, factor=_number(scaling, "factor"))
    if kind == "llama3":
        return Rope(
            theta,
            kind,
            factor=_number(scaling, "factor"),
            low_freq_factor=_number(scaling, "low_freq_factor"),
            high_freq_factor=_number(scaling, "high_freq_factor"),
            original_context=_integer(scaling, "original_max_position_embeddings", context),
        )
    raise UnsupportedModel(f"{field}.rope_type {kind!r} is not supported; supported: default, linear, llama3")


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise UnsupportedModel(f"eos_token_id must be a token id or a list of them, got {value!r}")
    return tuple(sorted(set(ids)))


def _integer(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = config.get(field)
    value = default if value is None else value
    if value is None:
        raise UnsupportedModel(f"config.json lacks {field}")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnsupportedModel(f"{field} must be a positive integer, got {value!r}")
    return value


def _number(config: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value = config.get(field)
    value = default if value is None else value
    if value is None:
        raise UnsupportedModel(f"config.json lacks {field}")
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise UnsupportedModel(f"{field} must be a positive number, got {value!r}")
    return float(value)
