from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from hyperflexis_worker.embedded.config_fields import UnsupportedModel
from hyperflexis_worker.embedded.model_config import ModelConfig
from hyperflexis_worker.embedded.rope import Rope

PLAIN: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8_192,
}


def test_defaults_are_those_of_the_family() -> None:
    config = ModelConfig.from_hf(PLAIN)
    assert (config.kv_heads, config.head_dim, config.norm_eps, config.rope) == (4, 16, 1e-6, Rope(10_000.0))
    assert (config.tied_embeddings, config.qkv_bias, config.qk_norm) == (False, False, False)
    assert (config.eos_token_ids, config.dtype) == ((), "float32")


def test_flags_tell_the_families_apart() -> None:
    qwen2 = ModelConfig.from_hf(PLAIN | {"architectures": ["Qwen2ForCausalLM"], "attention_bias": True})
    qwen3 = ModelConfig.from_hf(PLAIN | {"architectures": ["Qwen3ForCausalLM"]})
    assert (qwen2.qkv_bias, qwen2.qk_norm) == (True, False)
    assert (qwen3.qkv_bias, qwen3.qk_norm, qwen3.head_dim) == (False, True, 128)
    assert ModelConfig.from_hf(PLAIN | {"head_dim": 32}).head_dim == 32


def test_biases_are_where_the_family_has_them() -> None:
    def biases(family: str, **fields: bool) -> tuple[bool, bool, bool]:
        config = ModelConfig.from_hf(PLAIN | {"architectures": [f"{family}ForCausalLM"]} | fields)
        return (config.qkv_bias, config.o_bias, config.mlp_bias)

    assert biases("Llama") == biases("Qwen3", mlp_bias=True) == (False, False, False)
    assert biases("Qwen2") == biases("Qwen2", attention_bias=True, mlp_bias=True) == (True, False, False)
    assert biases("Llama", attention_bias=True) == biases("Qwen3", attention_bias=True) == (True, True, False)
    assert biases("Llama", mlp_bias=True) == (False, False, True)


def test_yarn_takes_what_is_left_out_from_the_context_and_the_paper() -> None:
    scaling = {"rope_type": "yarn", "original_max_position_embeddings": 128}
    rope = ModelConfig.from_hf(PLAIN | {"rope_scaling": scaling}).rope
    assert (rope.factor, rope.original_context, rope.beta_fast, rope.beta_slow) == (4.0, 128, 32.0, 1.0)
    assert rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    given = ModelConfig.from_hf(PLAIN | {"rope_scaling": scaling | {"factor": 2, "attention_factor": 1.5}}).rope
    assert (given.factor, given.attention_factor) == (2.0, 1.5)
    deepseek = ModelConfig.from_hf(PLAIN | {"rope_scaling": scaling | {"mscale": 1.0, "mscale_all_dim": 1.0}}).rope
    assert deepseek.attention_factor == 1.0


def test_rope_as_transformers_4_and_5_write_it() -> None:
    old = ModelConfig.from_hf(PLAIN | {"rope_theta": 5e5, "rope_scaling": LLAMA3})
    new = ModelConfig.from_hf(PLAIN | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}})
    assert old.rope == new.rope == Rope(5e5, "llama3", 8.0, 8_192, 1.0, 4.0)
    linear = ModelConfig.from_hf(PLAIN | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert linear.rope == Rope(10_000.0, "linear", 2.0)
    assert ModelConfig.from_hf(PLAIN | {"rope_scaling": None, "rope_theta": 7}).rope == Rope(7.0)


@pytest.mark.parametrize(("eos", "expected"), [(5, (5,)), ([7, 5, 7], (5, 7)), (None, ())])
def test_end_of_sequence_ids(eos: object, expected: tuple[int, ...]) -> None:
    assert ModelConfig.from_hf(PLAIN | {"eos_token_id": eos}).eos_token_ids == expected


def test_generation_config_names_the_end_of_sequence_ids(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PLAIN | {"eos_token_id": 1, "torch_dtype": "bfloat16"}))
    assert ModelConfig.from_directory(tmp_path).eos_token_ids == (1,)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    config = ModelConfig.from_directory(tmp_path)
    assert (config.eos_token_ids, config.dtype) == ((2, 3), "bfloat16")
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match="generation_config.json is not JSON"):
        ModelConfig.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*supported: LlamaForCausalLM"),
        ({"architectures": None}, "architectures"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"hidden_size": 2**40}, "hidden_size must be a positive integer below 2"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number"),
        ({"use_sliding_window": True}, "use_sliding_window True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_scaling.rope_type 'longrope'"),
        ({"rope_parameters": {"type": "dynamic"}}, "rope_parameters.rope_type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "lacks factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, r"rope_parameters by kind of layer \(full_att"),
        ({"rope_theta": "big"}, "rope_theta must be a positive number"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        ModelConfig.from_hf(PLAIN | change)
