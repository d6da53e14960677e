"""The torch engine as the step loop sees it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence as Rows
from dataclasses import asdict
from pathlib import Path

import torch

from hyperflexis_worker.embedded.attention import ReferenceAttention
from hyperflexis_worker.embedded.batch import pack
from hyperflexis_worker.embedded.kv_pool import Allocate, KvPool, plain_memory
from hyperflexis_worker.embedded.model import Decoder
from hyperflexis_worker.embedded.model_config import ModelConfig
from hyperflexis_worker.embedded.sampling import SAMPLING_VERSION, Sampler
from hyperflexis_worker.embedded.weights import TensorEntry, load_weights
from hyperflexis_worker.steps.sampled import Sampled
from hyperflexis_worker.steps.sequence import Sequence
from hyperflexis_worker.steps.step_plan import Chunk

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


class TorchExecutor:
    """An Executor over a Hugging Face directory. It keeps nothing of a sequence but what is in the pool, and counts
    of tokens where it is penalised for them."""

    def __init__(
        self,
        model_dir: str | Path,
        num_blocks: int,
        block_tokens: int = 16,
        dtype: str = "float32",
        device: str = "cpu",
        allocate: Allocate = plain_memory,
    ) -> None:
        """Loads the weights and makes the pool. Raises ValueError (a model it cannot run), OSError, and what
        `allocate` does."""
        if dtype not in DTYPES:
            raise ValueError(f"dtype {dtype!r} is not supported; supported: {', '.join(sorted(DTYPES))}")
        if threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))
        directory = Path(model_dir)
        if not directory.is_dir():
            raise FileNotFoundError(f"{directory} is not a model directory")
        self._device = torch.device(device)
        self._config = ModelConfig.from_directory(directory)
        self._dtype = dtype
        self._weights = load_weights(directory, self._config, DTYPES[dtype], self._device)
        self.pool = KvPool(self._config, num_blocks, block_tokens, DTYPES[dtype], self._device, allocate)
        self._sampler = Sampler(self._config.vocab_size, self._device)
        self._decoder = Decoder(self._config, self._weights, self.pool, ReferenceAttention(self.pool))

    @property
    def vocab_size(self) -> int:
        return self._config.vocab_size

    @property
    def context_length(self) -> int:
        return self._config.context_length

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset(self._config.eos_token_ids)

    @property
    def weight_manifest(self) -> tuple[TensorEntry, ...]:
        return self._weights.manifest

    @property
    def fingerprint(self) -> bytes:
        """16 bytes, equal for engines that may continue each other's requests."""
        sums = [(entry.name, entry.checksum) for entry in self.weight_manifest]
        identity = json.dumps([asdict(self._config), sums, self._dtype, SAMPLING_VERSION], sort_keys=True)
        return hashlib.blake2b(identity.encode(), digest_size=16).digest()

    def execute(self, chunks: Rows[Chunk]) -> Sampled:
        """See steps.step_loop.Executor. Raises ValueError, and computes nothing, for a token id out of range."""
        if not chunks:
            return Sampled([])
        for chunk in chunks:
            self._check(chunk)
        with torch.inference_mode():
            logits = self._decoder.forward(pack(chunks, self.pool.block_tokens, self._device))
            sampling = [chunk.sequence for chunk in chunks if chunk.samples]
            if sampling:
                return self._sampler.sample(logits, sampling)
        if self._device.type == "cuda":
            # Nobody waits for a token: without this the step would seem to take no time, and a peer might read blocks
            # that are not written yet.
            torch.cuda.synchronize(self._device)
        return Sampled([])

    def forget(self, sequence: Sequence) -> None:
        """What its penalties were computed from."""
        self._sampler.forget(sequence)

    def _check(self, chunk: Chunk) -> None:
        # On a GPU an index out of range kills the whole process, so it is looked at here.
        tokens = chunk.sequence.tokens(chunk.start, chunk.length)
        if min(tokens) < 0 or max(tokens) >= self.vocab_size:
            raise ValueError(f"{chunk.sequence.request_id} has a token id outside the vocabulary of {self.vocab_size}")
