"""Tokenizers by model. Encoding runs on a few threads; decoding is quick enough for the event loop.

The tokenizers library panics where a tokenizer.json breaks its assumptions, at loading or only over some text. A panic
is no Exception: it would pass every handler and end whatever task meets it, a worker's feed with all of its streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from tokenizers import Tokenizer

from hyperflexis_common.config import ConfigError
from hyperflexis_common.tokens import pack, unpack
from hyperflexis_router.chat import Message, load_chat_template
from hyperflexis_router.core.text import Decode, Undecodable
from hyperflexis_router.model_files import read_model_file

PROBES = ("Hello, wörld 1 € \n", "")
"""A tokenizer that panics over these is broken. One that has no token for some of it is not."""


class Unencodable(Exception):
    """The tokenizer has no tokens for this text; the message is its own reason."""


class ModelTokenizer:
    """What tokenizer.json says, with the library's failures told apart from crashes."""

    def __init__(self, definition: bytes) -> None:
        """Raises ValueError where it is not usable."""
        try:
            self._tokenizer = Tokenizer.from_buffer(definition)
            # Training recipes leave these in: a prompt would lose its end without a word, or be filled up to whatever
            # length the file names.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
        except BaseException as error:
            _raise_as(ValueError, error)
        for probe in PROBES:
            try:
                self.decode(list(unpack(self.encode(probe))))
            except (Unencodable, Undecodable) as error:
                if _is_panic(error.__cause__):
                    raise ValueError(str(error)) from error

    def encode(self, text: str, add_special_tokens: bool = True) -> bytes:
        """Packed token ids. Raises Unencodable."""
        try:
            # The batch call lets go of the interpreter while it works, the single one does not: a long prompt stopped
            # every stream of this router for seconds.
            [encoding] = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)
            return pack(encoding.ids)
        except BaseException as error:
            _raise_as(Unencodable, error)

    def decode(self, tokens: list[int]) -> str:
        """Special tokens skipped. Raises Undecodable."""
        try:
            text: str = self._tokenizer.decode(tokens)
            return text
        except BaseException as error:
            _raise_as(Undecodable, error)


class Tokenizing:
    """Loads tokenizer.json and chat template of each model's directory. Raises ConfigError where one cannot be used."""

    def __init__(self, paths: Mapping[str, Path], threads: int) -> None:
        self._tokenizers = {model: load_tokenizer(path) for model, path in paths.items()}
        templates = {model: load_chat_template(path) for model, path in paths.items() if path.is_dir()}
        self._templates = {model: template for model, template in templates.items() if template is not None}
        self._pool = ThreadPoolExecutor(threads, "tokenize")

    async def encode(self, model: str, text: str) -> bytes:
        """Packed token ids of a prompt, special tokens as the tokenizer adds them. Raises Unencodable."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._tokenizers[model].encode, text)

    @property
    def chat_models(self) -> Collection[str]:
        """Models with a chat template."""
        return self._templates.keys()

    async def encode_chat(self, model: str, messages: Sequence[Message]) -> bytes:
        """Packed token ids of a conversation, up to where the answer begins. Raises TemplateRefused, Unencodable."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._encode_chat, model, messages)

    def decoder(self, model: str) -> Decode | None:
        """None = the model has no tokenizer."""
        tokenizer = self._tokenizers.get(model)
        return tokenizer.decode if tokenizer is not None else None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for template in self._templates.values():
            template.close()

    def _encode_chat(self, model: str, messages: Sequence[Message]) -> bytes:
        # The template writes the special tokens itself.
        return self._tokenizers[model].encode(self._templates[model].render(messages), add_special_tokens=False)


def load_tokenizer(path: Path) -> ModelTokenizer:
    """From a model's directory, or the file itself. Raises ConfigError."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        return ModelTokenizer(read_model_file(file))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot load the tokenizer {file}: {error}; put the model's own tokenizer.json there, as its publisher "
            "wrote it"
        ) from error


def _raise_as(kind: type[Exception], error: BaseException) -> NoReturn:
    if _is_panic(error):
        raise kind(f"the tokenizers library panicked: {error}") from error
    if not isinstance(error, Exception):
        raise error
    raise kind(str(error)) from error


def _is_panic(error: BaseException | None) -> bool:
    return type(error).__name__ == "PanicException"  # of a module that cannot be imported
