"""A model directory's files: written by strangers, so they may be anything."""

from __future__ import annotations

from pathlib import Path

MODEL_FILE_BYTES = 256 * 2**20
"""The largest tokenizers in use have 35 MB."""


def read_model_file(file: Path) -> bytes:
    """Raises OSError or ValueError, and never waits for more than a disk."""
    if not file.is_file():
        raise FileNotFoundError("there is no such file")
    if (size := file.stat().st_size) > MODEL_FILE_BYTES:
        raise ValueError(f"its {size} bytes are over the limit of {MODEL_FILE_BYTES}")
    return file.read_bytes()
