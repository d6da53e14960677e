"""Tokenizers by model. Encoding runs on a few threads; decoding is quick enough for the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenizers import Tokenizer

from hyperflexis_common.config import ConfigError
from hyperflexis_common.tokens import pack
from hyperflexis_router.core.text import Decode


class Tokenizing:
    """Loads `tokenizer.json` of each model's directory. Raises ConfigError where one cannot be used."""

    def __init__(self, paths: Mapping[str, Path], threads: int) -> None:
        self._tokenizers = {model: _load(path) for model, path in paths.items()}
        self._pool = ThreadPoolExecutor(threads, "tokenize")

    async def encode(self, model: str, text: str) -> bytes:
        """Packed token ids of a prompt, special tokens as the tokenizer adds them."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode, model, text)

    def decoder(self, model: str) -> Decode | None:
        """None = the model has no tokenizer."""
        tokenizer = self._tokenizers.get(model)
        return tokenizer.decode if tokenizer is not None else None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode(self, model: str, text: str) -> bytes:
        # The batch call lets go of the interpreter while it works, the single one does not: a long prompt stopped
        # every stream of this router for seconds.
        [encoding] = self._tokenizers[model].encode_batch([text])
        return pack(encoding.ids)


def _load(path: Path) -> Tokenizer:
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        raise ConfigError(f"cannot load the tokenizer {file}: {error}") from error
