"""Fields of a config.json, read so that a wrong one is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

LARGEST = 2**31
"""No dimension, count or length of a model is larger: a file that says so is broken and must size no allocation."""


class UnsupportedModel(ValueError):
    """The checkpoint asks for something this engine does not do, or does not say what it needs to say."""


def integer(config: Mapping[str, Any], field: str, default: int | None = None, below: int = LARGEST) -> int:
    """A positive integer. Raises UnsupportedModel."""
    value = config.get(field)
    value = default if value is None else value
    if value is None:
        raise UnsupportedModel(f"config.json lacks {field}")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < below:
        raise UnsupportedModel(f"{field} must be a positive integer below {below}, got {value!r}")
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


def flag(config: Mapping[str, Any], field: str) -> bool:
    """True or false, the latter where it is not there. Raises UnsupportedModel."""
    value = config.get(field)
    if value is not None and not isinstance(value, bool):
        raise UnsupportedModel(f"{field} must be true or false, got {value!r}")
    return bool(value)


def strings(config: Mapping[str, Any], field: str) -> list[str]:
    """A list of strings, empty where it is not there. Raises UnsupportedModel."""
    value = config.get(field)
    if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise UnsupportedModel(f"{field} must be a list of strings, got {value!r}")
    return value or []
