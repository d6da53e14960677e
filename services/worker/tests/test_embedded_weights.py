from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hyperflexis_worker.embedded.model_config import ModelConfig
from hyperflexis_worker.embedded.weights import ALIGNMENT, Weights, WeightsError, load_weights, slots

CONFIG = ModelConfig.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 31,
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
)
CPU = torch.device("cpu")


def checkpoint() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) for slot in slots(CONFIG) for name, shape in slot.sources}


def load(directory: Path, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Weights:
    save_file(tensors, directory / "model.safetensors")
    return load_weights(directory, CONFIG, dtype, CPU)


def test_tensors_lie_fused_and_aligned_in_one_arena(tmp_path: Path) -> None:
    tensors = checkpoint()
    weights = load(tmp_path, tensors)
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"]
    assert torch.equal(weights["layers.1.qkv"], torch.cat([tensors[name] for name in names]))
    gate, up = weights["layers.0.gate_up"].chunk(2)
    assert torch.equal(gate, tensors["model.layers.0.mlp.gate_proj.weight"])
    assert torch.equal(up, tensors["model.layers.0.mlp.up_proj.weight"])
    end = 0
    for entry in weights.manifest:
        assert entry.offset % ALIGNMENT == 0
        assert 0 <= entry.offset - end < ALIGNMENT
        end = entry.offset + entry.length
        assert weights[entry.name].data_ptr() == weights.arena.data_ptr() + entry.offset
    assert weights.arena.numel() - end < ALIGNMENT


def test_a_copied_arena_with_its_manifest_is_the_same_weights(tmp_path: Path) -> None:
    weights = load(tmp_path, checkpoint())
    copy = Weights(weights.arena.clone(), weights.manifest)
    copy.verify()
    assert torch.equal(copy["layers.0.down"], weights["layers.0.down"])


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_checksums_see_one_flipped_bit_and_swapped_words(tmp_path: Path, bit: int) -> None:
    weights = load(tmp_path, checkpoint())
    for entry in weights.manifest:
        copy = Weights(weights.arena.clone(), weights.manifest)
        copy.arena[entry.offset + entry.length - 1] ^= 1 << bit
        with pytest.raises(WeightsError, match=f"1 tensors differ from their checksum: {entry.name}$"):
            copy.verify()
    copy = Weights(weights.arena.clone(), weights.manifest)
    words = copy.arena.view(torch.int64)
    words[:2] = words[:2].flip(0)
    with pytest.raises(WeightsError, match="embed"):
        copy.verify()


def test_checksums_depend_on_content_alone(tmp_path: Path) -> None:
    tensors = checkpoint()
    first = load(tmp_path, tensors).manifest
    assert load(tmp_path, dict(reversed(tensors.items()))).manifest == first
    tensors["model.norm.weight"][0] += 1
    changed = [a.name for a, b in zip(first, load(tmp_path, tensors).manifest, strict=True) if a != b]
    assert changed == ["norm"]


def test_checksums_do_not_depend_on_the_words_hashed_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(tmp_path, checkpoint())
    monkeypatch.setattr("hyperflexis_worker.embedded.weights.CHECKSUM_WORDS", 7)
    whole.verify()


def test_a_sharded_checkpoint_is_the_same_arena(tmp_path: Path) -> None:
    tensors = checkpoint()
    whole = load(tmp_path, tensors)
    shards = tmp_path / "shards"
    shards.mkdir()
    weight_map = {name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == file}, shards / file)
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = load_weights(shards, CONFIG, torch.float32, CPU)
    assert sharded.manifest == whole.manifest
    assert torch.equal(sharded.arena, whole.arena)
    (shards / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match="lacks model-00002-of-00003"):
        load_weights(shards, CONFIG, torch.float32, CPU)


def test_weights_are_converted_to_the_engines_dtype(tmp_path: Path) -> None:
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in checkpoint().items()}
    weights = load(tmp_path, tensors, torch.float64)
    assert torch.equal(weights["embed"], tensors["model.embed_tokens.weight"].double())
    assert {entry.dtype for entry in weights.manifest} == {"float64"}


def test_a_missing_tensor(tmp_path: Path) -> None:
    tensors = checkpoint()
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(WeightsError, match=r"lacks 1 tensors of its config.json: model.layers.1.self_attn.k_proj"):
        load(tmp_path, tensors)


def test_a_surplus_tensor(tmp_path: Path) -> None:
    extra = {f"model.layers.{i}.self_attn.q_proj.bias": torch.zeros(12) for i in range(5)}
    with pytest.raises(WeightsError, match=r"has 5 tensors its config.json does not: .*q_proj.bias, …"):
        load(tmp_path, checkpoint() | extra)
    load(tmp_path, checkpoint() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(1)})


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(12, 31), r"lm_head.weight has shape \[12, 31\], config.json says \[31, 12\]"),
        (torch.zeros(31, 12, dtype=torch.int8), "lm_head.weight is I8: quantised"),
    ],
)
def test_a_tensor_that_does_not_fit(tmp_path: Path, tensor: Tensor, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load(tmp_path, checkpoint() | {"lm_head.weight": tensor})


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"lacks model.safetensors: only safetensors"):
        load_weights(tmp_path, CONFIG, torch.float32, CPU)
    (tmp_path / "model.safetensors").write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        load_weights(tmp_path, CONFIG, torch.float32, CPU)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(WeightsError, match="no index of shards"):
        load_weights(tmp_path, CONFIG, torch.float32, CPU)
