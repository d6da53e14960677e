"""Tokenizers by model. Encoding runs on a few threads; decoding is quick enough for the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenizers import Tokenizer

from hyperflexis_common.config import ConfigError
from hyperflexis_common.tokens import pack
from hyperflexis_router.chat import Message, load_chat_template
from hyperflexis_router.core.text import Decode


class Tokenizing:
    """Loads tokenizer.json and chat template of each model's directory. Raises ConfigError where one cannot be used."""

    def __init__(self, paths: Mapping[str, Path], threads: int) -> None:
        self._tokenizers = {model: _load(path) for model, path in paths.items()}
        templates = {model: load_chat_template(path) for model, path in paths.items() if path.is_dir()}
        self._templates = {model: template for model, template in templates.items() if template is not None}
        self._pool = ThreadPoolExecutor(threads, "tokenize")

    async def encode(self, model: str, text: str) -> bytes:
        """Packed token ids of a prompt, special tokens as the tokenizer adds them."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode, model, text)

    @property
    def chat_models(self) -> Collection[str]:
        """Models with a chat template."""
        return self._templates.keys()

    async def encode_chat(self, model: str, messages: Sequence[Message]) -> bytes:
        """Packed token ids of a conversation, up to where the answer begins. Raises TemplateRefused."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode_chat, model, messages)

    def decoder(self, model: str) -> Decode | None:
        """None = the model has no tokenizer."""
        tokenizer = self._tokenizers.get(model)
        return tokenizer.decode if tokenizer is not None else None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _encode_chat(self, model: str, messages: Sequence[Message]) -> bytes:
        # The template writes the special tokens itself.
        return self._encode(model, self._templates[model].render(messages), add_special_tokens=False)

    def _encode(self, model: str, text: str, add_special_tokens: bool = True) -> bytes:
        # The batch call lets go of the interpreter while it works, the single one does not: a long prompt stopped
        # every stream of this router for seconds.
        [encoding] = self._tokenizers[model].encode_batch([text], add_special_tokens=add_special_tokens)
        return pack(encoding.ids)


def _load(path: Path) -> Tokenizer:
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        raise ConfigError(f"cannot load the tokenizer {file}: {error}") from error
