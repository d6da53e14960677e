"""What loading costs beside the arena: one tensor of the checkpoint, so never more than one shard.

Measured in a process of its own, mapped pages of the files included. On a CPU with torch 2.13 and safetensors 0.8,
252 MiB of bfloat16 whose largest tensor has 39.1 MiB: 39.1 MiB beside the arena, in one file as in four shards of
34 to 92 MiB, as bfloat16 (arena 252 MiB) as in float32 (504 MiB).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hyperflexis_worker.embedded.model_config import ModelConfig
from hyperflexis_worker.embedded.weights import slots

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 20_000,
    "hidden_size": 1_024,
    "intermediate_size": 4_096,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
SHARDS = 4
LARGEST = 20_000 * 1_024 * 2
"""Bytes of the embedding in the file."""
MARGIN = 16 * 2**20
"""For the allocator, the headers and the checksum's scratch."""
LOAD = """
import json, sys, torch
from pathlib import Path
from hyperflexis_worker.embedded.model_config import ModelConfig
from hyperflexis_worker.embedded.weights import load_weights

def memory(field):
    return int(Path("/proc/self/status").read_text().split(field + ":")[1].split()[0]) * 1024

def load(directory):
    config = ModelConfig.from_hf(json.loads((directory / "config.json").read_text()))
    return load_weights(directory, config, getattr(torch, sys.argv[2]), torch.device("cpu"))

load(Path(sys.argv[1]) / "small")
before = memory("VmRSS")
weights = load(Path(sys.argv[1]))
print(json.dumps({"arena": weights.arena.numel(), "growth": memory("VmHWM") - before}))
"""


def write(directory: Path, fields: dict[str, object], shards: int) -> list[int]:
    """A checkpoint; returns the sizes of its files."""
    random = torch.Generator().manual_seed(1)
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    sources = [source for slot in slots(ModelConfig.from_hf(fields)) for source in slot.sources]
    weight_map: dict[str, str] = {}
    sizes = []
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        mine = sources[shard * len(sources) // shards : (shard + 1) * len(sources) // shards]
        save_file(
            {name: torch.randn(shape, generator=random).to(torch.bfloat16) for name, shape in mine}, directory / file
        )
        weight_map |= dict.fromkeys((name for name, _ in mine), file)
        sizes.append((directory / file).stat().st_size)
    if shards > 1:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sizes


@pytest.mark.parametrize(("shards", "dtype"), [(SHARDS, "float32"), (1, "bfloat16")])
def test_the_peak_is_the_arena_and_one_tensor(tmp_path: Path, shards: int, dtype: str) -> None:
    write(tmp_path / "small", CONFIG | {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64}, 1)
    sizes = write(tmp_path, CONFIG, shards)
    assert len(sizes) == shards and max(sizes) > LARGEST
    run = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path), dtype], capture_output=True, text=True, check=True)
    measured = json.loads(run.stdout)
    assert measured["arena"] >= sum(sizes) * (2 if dtype == "float32" else 1) * 0.99
    assert measured["arena"] < measured["growth"] <= measured["arena"] + LARGEST + MARGIN
