"""Where a model's files are: a Hugging Face directory on this machine, or a repository of the hub by its id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""owner/name, as the hub writes it; a path to a directory of this shape is written ./owner/name where it matters."""
TOKENIZER_FILES = ("tokenizer*", "chat_template*")
MODEL_FILES = ("*.json", "*.safetensors", *TOKENIZER_FILES)


class ModelNotFound(ValueError):
    """Neither a directory nor to be had from the hub; the message says what to do."""


def model_directory(path: Path, files: Sequence[str] = MODEL_FILES) -> Path:
    """The directory with these files of a model: `path` itself, or a snapshot of the hub's repository of that id.

    A repository is downloaded once into the hub's own cache (HF_HOME), and found there without a network.
    Raises ModelNotFound.
    """
    if path.exists():
        return path
    name = path.as_posix()
    if not HUB_ID.fullmatch(name):
        raise ModelNotFound(f"{path} is not a model directory, and no id of the hub (owner/name) either")
    try:
        import huggingface_hub
    except ImportError as error:
        message = f"{name} is no directory; to take it from the hub, pip install huggingface_hub"
        raise ModelNotFound(message) from error
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # the library's own errors, and whatever the network below it raises
        message = f"{name} is no directory, and the hub does not give it: {type(error).__name__}: {error}"
        raise ModelNotFound(message.splitlines()[0]) from error
