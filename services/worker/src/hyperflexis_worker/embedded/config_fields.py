"""Fields of a config.json, read so that a wrong one is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LARGEST = 2**31
"""No dimension, count or length of a model is larger: a file that says so is broken and must size no allocation."""


class UnsupportedModel(ValueError):
    """The checkpoint asks for something this engine does not do, or does not say what it needs to say."""


def integer(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    """A positive integer. Raises UnsupportedModel."""
    value = config.get(field)
    value = default if value is None else value
    if value is None:
        raise UnsupportedModel(f"config.json lacks {field}")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < LARGEST:
        raise UnsupportedModel(f"{field} must be a positive integer below 2**31, got {value!r}")
    return value


def number(config: Mapping[str, Any], field: str, default: float | None = None) -> float:
    """A positive, finite number. Raises UnsupportedModel."""
    value = config.get(field)
    value = default if value is None else value
    if value is None:
        raise UnsupportedModel(f"config.json lacks {field}")
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise UnsupportedModel(f"{field} must be a positive number, got {value!r}")
    return float(value)
