"""Writes a small but real Hugging Face model directory, so that everything runs where nothing can be downloaded.

    python -m hyperflexis_worker.sample_model DIR [--hidden 256] [--layers 4] [--seed 0] [--force]

The text is Python's own language reference. The tokenizer is trained on it, and the weights are not trained at all:
embedding and output layer are the two factors of its token-pair statistics, so the model speaks in likely pairs; the
layers between are random and small, enough for every output to depend on the whole context. The same arguments
write the same bytes under the same Python release.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

BEGIN, END = "<|begin|>", "<|end|>"
CHAT_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role not in ("system", "user", "assistant") -%}
{{- raise_exception("roles are system, user and assistant, not " + message.role) -}}
{%- endif -%}
{{- message.role.capitalize() + ": " + message.content | trim + "\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "Assistant:" -}}{%- endif -%}
"""
MARKUP = str.maketrans("", "", '*"`=~^_')
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SampleShape:
    """Size of the model; the defaults decode a batch of 16 in a few milliseconds on one CPU core."""

    hidden: int = 256
    layers: int = 4
    vocab: int = 2_048
    context: int = 2_048

    def __post_init__(self) -> None:
        if self.hidden % 128 or self.hidden < 128:
            raise ValueError(f"hidden must be a positive multiple of 128, got {self.hidden}")
        if self.layers < 1 or self.vocab < 512 or self.context < 1:
            raise ValueError("layers and context must be at least 1, vocab at least 512")

    @property
    def head_dim(self) -> int:
        return 64 if self.hidden >= 512 else 32

    @property
    def heads(self) -> int:
        return self.hidden // self.head_dim

    @property
    def kv_heads(self) -> int:
        return self.heads // 4

    @property
    def intermediate(self) -> int:
        return self.hidden * 11 // 4


def write_sample_model(directory: Path, shape: SampleShape, seed: int = 0, force: bool = False) -> bool:
    """Writes the directory all at once; False where a complete one is there already (and `force` is not given)."""
    if not force and is_complete(directory):
        return False
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        staging.chmod(0o755)
        _write_files(staging, shape, seed)
        if directory.exists():
            old = staging.with_suffix(".old")
            directory.rename(old)
            shutil.rmtree(old)
        staging.rename(directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        if not force and is_complete(directory):
            return False  # another process was quicker
        raise
    return True


def is_complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in FILES)


def documents() -> list[str]:
    """The prose of Python's language reference, one document a topic; code, grammar, tables and markup left out."""
    texts = []
    for _, topic in sorted(topics.items()):
        prose = []
        for paragraph in topic.split("\n\n"):
            words = paragraph.translate(MARKUP).split()
            # A paragraph ends like a sentence; headings and examples do not.
            if words and words[-1][-1] in ".:)" and not any(mark in paragraph for mark in ("::=", ">>>", "|", "...")):
                prose.append(" ".join(words))
        texts.append("\n".join(prose))
    return [text for text in texts if text]


def _write_files(directory: Path, shape: SampleShape, seed: int) -> None:
    texts = documents()
    tokenizer = _train_tokenizer(texts, shape.vocab)
    begin, end = (tokenizer.get_vocab()[name] for name in (BEGIN, END))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": begin,
        "eos_token_id": end,
        "torch_dtype": "float32",
    }
    _write_json(directory / "config.json", config)
    _write_json(directory / "generation_config.json", {"bos_token_id": begin, "eos_token_id": end})
    tokenizer.save(str(directory / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "model_max_length": shape.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(directory / "tokenizer_config.json", tokenizer_config)
    streams = [[begin, *encoding.ids, end] for encoding in tokenizer.encode_batch(texts)]
    tensors = _weights(streams, shape, np.random.default_rng(seed))
    weights = directory / "model.safetensors"
    save_file({name: _rounded(tensor) for name, tensor in tensors.items()}, weights, {"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it private, and workers may run as somebody else


def _train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab:
        most = tokenizer.get_vocab_size()
        raise ValueError(f"the text yields no more than {most} tokens; choose a vocab of at most that, not {vocab}")
    return tokenizer


def _weights(streams: list[list[int]], shape: SampleShape, rng: np.random.Generator) -> dict[str, Array]:
    """All tensors under their Llama names."""
    hidden, inner = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim

    def random(rows: int, columns: int, gain: float = 1.0) -> Array:
        values: Array = rng.standard_normal((rows, columns)) * (gain / np.sqrt(columns))
        return values

    embedding, head = _pair_factors(streams, shape, rng)
    tensors = {"model.embed_tokens.weight": embedding, "lm_head.weight": head, "model.norm.weight": np.ones(hidden)}
    # What the layers add stays small beside the embedding: it colours the statistics, it must not drown them.
    quiet = 0.1 / np.sqrt(2 * shape.layers)
    for layer in range(shape.layers):
        name = f"model.layers.{layer}"
        tensors |= {
            f"{name}.input_layernorm.weight": np.ones(hidden),
            f"{name}.self_attn.q_proj.weight": random(queries, hidden),
            f"{name}.self_attn.k_proj.weight": random(keys, hidden),
            f"{name}.self_attn.v_proj.weight": random(keys, hidden),
            f"{name}.self_attn.o_proj.weight": random(hidden, queries, quiet),
            f"{name}.post_attention_layernorm.weight": np.ones(hidden),
            f"{name}.mlp.gate_proj.weight": random(inner, hidden),
            f"{name}.mlp.up_proj.weight": random(inner, hidden),
            f"{name}.mlp.down_proj.weight": random(hidden, inner, quiet),
        }
    return tensors


def _pair_factors(streams: list[list[int]], shape: SampleShape, rng: np.random.Generator) -> tuple[Array, Array]:
    """Embedding and output layer whose product is about log P(next token | token).

    Of the `hidden` columns one carries the plain frequency of the next token, one only makes every embedding equally
    long, so that RMS norm changes nothing; the rest are a truncated singular value decomposition of the
    pointwise mutual information.
    """
    counts = np.zeros((shape.vocab, shape.vocab))
    for stream in streams:
        np.add.at(counts, (stream[:-1], stream[1:]), 1)
    frequency = counts.sum(0) + 0.5
    frequency /= frequency.sum()
    smoothing = 0.5
    likely = (counts + smoothing * frequency) / (counts.sum(1, keepdims=True) + smoothing)
    left, right = _truncated_svd(np.log(likely / frequency), shape.hidden - 2, rng)
    lengths = np.linalg.norm(left, axis=1, keepdims=True)
    scale = np.sqrt(shape.hidden - 2) / lengths.max()
    constant = np.ones((shape.vocab, 1))
    filler = np.sqrt(np.maximum(shape.hidden - 1 - (lengths * scale) ** 2, 0))
    embedding = np.hstack([left * scale, constant, filler])
    head = np.hstack([right / scale, np.log(frequency)[:, None], np.zeros((shape.vocab, 1))])
    return embedding, head


def _truncated_svd(matrix: Array, rank: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Factors of the best approximation of that rank, nearly: a randomised range finder with power iterations."""
    basis: Array = matrix @ rng.standard_normal((matrix.shape[1], rank + 16))
    for _ in range(3):
        basis = matrix @ (matrix.T @ np.linalg.qr(basis)[0])
    basis = np.linalg.qr(basis)[0]
    inner, values, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    root = np.sqrt(values[:rank])
    return basis @ inner[:, :rank] * root, right[:rank].T * root


def _rounded(tensor: Array) -> NDArray[np.float32]:
    """On a coarse grid, where the last bits of different BLAS builds agree."""
    grid = np.round(tensor * 4_096) / 4_096
    return np.ascontiguousarray(grid, dtype=np.float32)


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    defaults = SampleShape()
    parser = argparse.ArgumentParser(description="Write a small Llama model directory made from Python's own text.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--hidden", type=int, default=defaults.hidden)
    parser.add_argument("--layers", type=int, default=defaults.layers)
    parser.add_argument("--vocab", type=int, default=defaults.vocab)
    parser.add_argument("--context", type=int, default=defaults.context)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--force", action="store_true", help="replace what is there")
    options = parser.parse_args()
    # The tokenizer's threads would fight with those of whatever runs beside this.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        shape = SampleShape(options.hidden, options.layers, options.vocab, options.context)
        written = write_sample_model(options.directory, shape, options.seed, options.force)
    except ValueError as error:
        parser.error(str(error))
    print(f"{options.directory}: {'written' if written else 'complete already'}")


if __name__ == "__main__":
    main()
