"""Random checkpoints of every supported family in odd shapes, and what transformers says they continue with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 211
CONTEXT = 4_096


def _size(heads: int, kv_heads: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,  # bold, so that the most likely token depends on the context
        **more,
    }


def _llama(heads: int, kv_heads: int, **more: Any) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_size(heads, kv_heads, **more)))


def _qwen2(heads: int, kv_heads: int, **more: Any) -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**_size(heads, kv_heads, **more)))


def _qwen3(heads: int, kv_heads: int, **more: Any) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**_size(heads, kv_heads, **more)))


LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 1_000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 512}
YARN_FINE = YARN | {
    "rope_theta": 300.0,
    "beta_fast": 16.0,
    "beta_slow": 2.0,
    "truncate": False,
    "attention_factor": 1.3,
}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama-group-1": lambda: _llama(4, 4),
    "llama-group-3": lambda: _llama(6, 2),
    "llama-group-7-tied-llama3": lambda: _llama(
        7, 1, hidden_size=56, head_dim=10, tie_word_embeddings=True, rope_parameters=LLAMA3
    ),
    "llama-linear": lambda: _llama(6, 2, rope_parameters=LINEAR),
    "llama-yarn": lambda: _llama(8, 2, rope_parameters=YARN),
    "llama-bias": lambda: _llama(6, 3, attention_bias=True, mlp_bias=True),
    "qwen2-group-4": lambda: _qwen2(8, 2),
    "qwen2-group-7-tied-yarn": lambda: _qwen2(
        14, 2, head_dim=8, hidden_size=112, tie_word_embeddings=True, rope_parameters=YARN_FINE
    ),
    "qwen3-group-4": lambda: _qwen3(8, 2, head_dim=16),
    "qwen3-group-3-tied": lambda: _qwen3(6, 2, head_dim=32, tie_word_embeddings=True),
    "qwen3-bias-yarn": lambda: _qwen3(4, 4, head_dim=8, attention_bias=True, rope_parameters=YARN),
}


def make_model(name: str, seed: int = 7) -> PreTrainedModel:
    """In float64: there the order of summation practically never decides a token."""
    torch.manual_seed(seed)
    model = MODELS[name]()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias") or "norm" in parameter_name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)  # initialised to zeros and ones, which would hide an error
    model.double()
    model.train(False)
    return model


def random_prompt(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (length,), generator=generator).tolist()


def continuation(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    """The next `count` greedy tokens, each from a step of transformers with its own cache."""
    tokens: list[int] = []
    ids, cache = torch.tensor([list(prompt)], device=model.device), None
    with torch.inference_mode():
        for _ in range(count):
            out = model(ids, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            tokens.append(int(out.logits[0, -1].argmax()))
            ids = torch.tensor([tokens[-1:]], device=model.device)
    return tokens


def save(model: PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory
