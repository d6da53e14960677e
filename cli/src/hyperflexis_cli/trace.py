"""Request traces: CSV with `arrival_s,prompt_tokens,output_tokens[,tier]`; further columns are ignored."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

REQUIRED = ("arrival_s", "prompt_tokens", "output_tokens")


class TraceError(ValueError):
    """The trace cannot be used; the message names file, line and reason."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace."""

    arrival_s: float
    """Seconds after the first arrival."""
    prompt_tokens: int
    output_tokens: int
    tier: str = ""
    """Empty = the trace does not say."""


def read_trace(path: Path) -> list[TraceRow]:
    """The rows in order of arrival, the first at 0 s. Raises TraceError."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return parse_trace(lines, str(path))
    except OSError as error:
        raise TraceError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path} is not UTF-8 text: {error.reason}") from error


def parse_trace(lines: Iterable[str], name: str = "trace") -> list[TraceRow]:
    """As read_trace, from lines of text."""
    reader = csv.reader(lines, strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        missing = [column for column in REQUIRED if column not in header]
        if missing:
            wanted = ",".join(REQUIRED)
            raise TraceError(f"{name}:1: no column {missing[0]!r}; the first line must name {wanted}[,tier]")
        rows = [
            _row(dict(zip(header, cells, strict=False)), f"{name}:{reader.line_num}")
            for cells in reader
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as error:
        raise TraceError(f"{name}:{reader.line_num}: {error}") from error
    if not rows:
        raise TraceError(f"{name}: no requests after the header")
    rows.sort(key=lambda row: row.arrival_s)
    start_s = rows[0].arrival_s
    return [TraceRow(row.arrival_s - start_s, row.prompt_tokens, row.output_tokens, row.tier) for row in rows]


def _row(cells: dict[str, str], where: str) -> TraceRow:
    for column in REQUIRED:
        if not cells.get(column, "").strip():
            raise TraceError(f"{where}: {column} is empty")
    return TraceRow(
        arrival_s=_seconds(cells["arrival_s"], where),
        prompt_tokens=_tokens(cells["prompt_tokens"], f"{where}: prompt_tokens"),
        output_tokens=_tokens(cells["output_tokens"], f"{where}: output_tokens"),
        tier=cells.get("tier", "").strip(),
    )


def _seconds(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise TraceError(f"{where}: arrival_s must be a number of seconds, got {cell.strip()!r}")
    return value


def _tokens(cell: str, where: str) -> int:
    text = cell.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise TraceError(f"{where} must be a whole number of at least 1, got {text!r}")
    return int(text)
