"""Results kept in the repository: totals of each run, and each tier's where latencies are judged, a row a line.

`slo.py --into FILE` replaces there what it has run again, and leaves the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slo_targets import LATENCY_LOAD

Row = Mapping[str, Any]
_LISTS = ("capacities", "bounds", "targets", "rows")
_POINT = ("trace", "profile", "workers", "load", "policy")
_DERIVED = ("attained", "unfinished", "tpot_p50_ms")
"""Told by other columns, or by none of the tables."""
_OF_SOME = ("cached_share", "somewhere_share", "pulled_share", "prefill_saved_s", "migrated", "move_p99_ms")
"""Empty where nothing moves and nothing is cached."""


def read(path: Path) -> dict[str, Any]:
    """Raises ValueError where it holds no results."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    missing = [name for name in ("capacities", "bounds", "rows") if not isinstance(document.get(name), list)]
    if missing:
        raise ValueError(f"{path} holds no results of bench-slo: {', '.join(missing)} missing")
    return document


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Short values first, then the lists, an element a line: a changed run is a changed line."""
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in document.items() if name not in _LISTS]
    for name in _LISTS:
        if name in document:
            elements = ",\n".join(f"  {json.dumps(element)}" for element in document[name])
            lines.append(f' "{name}": [\n{elements}\n ]')
    partial = path.with_suffix(".partial")
    partial.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    partial.replace(path)


def merged(kept: Sequence[Row], new: Sequence[Row]) -> list[dict[str, Any]]:
    """A policy that was run again at some load has all of its seeds there replaced: they would not be of one code."""
    again = {_point(row) for row in new}
    rows = [dict(row) for row in kept if _point(row) not in again] + [compact(row) for row in new if _wanted(row)]
    columns = (*_POINT, "seed")
    places = [_places(rows, name) for name in columns]
    return sorted(rows, key=lambda row: [place[row[name]] for place, name in zip(places, columns, strict=True)])


def capacities(kept: Sequence[Row], new: Iterable[Row]) -> list[Row]:
    """Those kept, and of other environments those found now."""
    known = {_place(row) for row in kept}
    return [*kept, *(row for row in new if _place(row) not in known)]


def compact(row: Row) -> dict[str, Any]:
    """Without what is told by the rest, or of no use here."""
    left_out = {*_DERIVED, *(name for name in _OF_SOME if row.get(name) is None)}
    return {name: value for name, value in row.items() if name not in left_out}


def _wanted(row: Row) -> bool:
    return bool(row["tier"] == "all" or row["load"] == LATENCY_LOAD)


def _point(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _POINT)


def _place(row: Row) -> tuple[Any, ...]:
    return row["trace"], row["profile"], row["workers"]


def _places(rows: Iterable[Row], name: str) -> dict[Any, int]:
    """Numbers by size, names as first seen."""
    values = dict.fromkeys(row[name] for row in rows)
    ordered = list(values) if name in ("trace", "profile", "policy") else sorted(values)
    return {value: place for place, value in enumerate(ordered)}
