"""A model of a published shape with random weights, on one side of a hand-off; no files."""

from __future__ import annotations

import random
import time
from math import prod
from typing import Any

import numpy as np
import torch
from kv_side import Blocks, Side, milliseconds

from hyperflexis_common.attempt import NO_ATTEMPT
from hyperflexis_worker.cuda.peer import PeerTransport
from hyperflexis_worker.cuda.pool_memory import PoolMemory
from hyperflexis_worker.embedded.attention import ReferenceAttention
from hyperflexis_worker.embedded.batch import pack
from hyperflexis_worker.embedded.kv_pool import KvPool
from hyperflexis_worker.embedded.model import Decoder
from hyperflexis_worker.embedded.model_config import ModelConfig
from hyperflexis_worker.embedded.weights import ALIGNMENT, TensorEntry, Weights, slots
from hyperflexis_worker.steps.sequence import Sampling, Sequence
from hyperflexis_worker.steps.step_plan import Chunk

BLOCK_TOKENS = 64
CHUNK = 512
LONGEST = 9_000
"""Tokens of a text."""
LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128_256,
    "hidden_size": 4_096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8_192,
    },
}
TINY = LLAMA_8B | {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def random_weights(config: ModelConfig, device: torch.device, seed: int) -> Weights:
    """bfloat16, the same for the same seed on GPUs of the same kind."""
    offset, entries = 0, []
    for slot in slots(config):
        length = 2 * prod(slot.shape)
        entries.append(TensorEntry(slot.name, "bfloat16", slot.shape, offset, length, 0))
        offset += -(-length // ALIGNMENT) * ALIGNMENT
    weights = Weights(torch.zeros(offset, dtype=torch.uint8, device=device), tuple(entries))
    generator = torch.Generator(device=device).manual_seed(seed)
    for entry in entries:
        if entry.name.endswith("norm"):
            weights[entry.name].fill_(1)
        else:
            weights[entry.name].normal_(0, 0.02, generator=generator)
    return weights


class ModelSide(Side):
    """Prefill, decode and moving, one sequence at a time, told step by step. Text `t` is the same on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: dict[int, list[int]] = {}

    def setup(self, shape: dict[str, Any], blocks: int) -> dict[str, Any]:
        began = time.perf_counter()
        self.config = ModelConfig.from_hf(shape)
        here = torch.device("cuda", self.device)
        weights = random_weights(self.config, here, seed=7)
        self.allocated = PoolMemory()
        self.pool = KvPool(self.config, blocks, BLOCK_TOKENS, torch.bfloat16, here, self.allocated)
        self.decoder = Decoder(self.config, weights, self.pool, ReferenceAttention(self.pool))
        torch.cuda.synchronize(self.device)
        took = milliseconds(began)
        self.memory = self.allocated.shared
        assert self.memory is not None
        self.blocks = Blocks(blocks, self.pool.block_bytes, self.memory.address, self.device)
        self.transport = PeerTransport(self.blocks, self.memory)
        return {
            "setup_ms": took,
            "block_bytes": self.pool.block_bytes,
            "weights_sum": int(weights.arena.view(torch.int64).sum()),
            "metadata": self.transport.metadata(),
        }

    def prefill(self, text: int, tokens: int, blocks: list[int], start: int = 0) -> float:
        """Tokens [start, tokens) into `blocks`, in chunks; milliseconds."""
        began = time.perf_counter()
        for at in range(start, tokens, CHUNK):
            self._step(text, at, min(CHUNK, tokens - at), blocks)
        torch.cuda.synchronize(self.device)
        return milliseconds(began)

    def decode(self, text: int, tokens: int, steps: int, blocks: list[int]) -> dict[str, Any]:
        """Tokens [tokens, tokens + steps) of the text one by one: the logits' bits int16 [steps, vocabulary], and the
        milliseconds of each step."""
        logits, took = [], []
        for step in range(steps):
            began = time.perf_counter()
            logits.append(self._step(text, tokens + step, 1, blocks).view(torch.int16).cpu().numpy()[0])
            took.append(milliseconds(began))
        return {"logits": np.stack(logits), "ms": took}

    def pull(self, remote: list[int], local: list[int]) -> dict[str, Any]:
        """Blocks of the peer, until they are here."""
        assert self.transport is not None
        began = time.perf_counter()
        handle = self.transport.post("exporter", 1, remote, local)
        passage = self.transport._under_way[handle][1]
        self.finish(handle)
        took = milliseconds(began)
        moved = len(remote) * self.blocks.block_bytes
        return {"ms": took, "mib": moved >> 20, "gb_s": round(moved / passage.seconds / 1e9, 1)}

    def _step(self, text: int, start: int, length: int, blocks: list[int]) -> torch.Tensor:
        """bfloat16 [1, vocabulary]: logits after token start + length - 1."""
        if text not in self._texts:
            chance = random.Random(text)
            self._texts[text] = [chance.randrange(self.config.vocab_size) for _ in range(LONGEST)]
        ids = self._texts[text]
        one = Sequence("one", NO_ATTEMPT, ids[: start + length], [], Sampling(), 1, blocks=blocks)
        with torch.inference_mode():
            return self.decoder.forward(pack([Chunk(one, start, length)], BLOCK_TOKENS, self.pool.tensor.device))
