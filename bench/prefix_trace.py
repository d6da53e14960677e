"""Mooncake's traces with what prompts have in common: the name of each full block of 512 tokens of each prompt."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from hyperflexis_cli.trace import TraceRow
from hyperflexis_sim.prefix_cache import BLOCK_TOKENS

Named = tuple[list[TraceRow], list[tuple[bytes, ...]]]
"""Requests, and the names of each one's blocks."""
NAME_BYTES = 16


def named_trace(path: Path) -> Named:
    """A .jsonl as Mooncake publishes it (github.com/kvcache-ai/Mooncake, FAST25-release/traces) is read as it is; of a
    .csv, which tells only how long the shared beginnings are, they are rebuilt. Raises ValueError."""
    try:
        with path.open(encoding="utf-8") as lines:
            if path.suffix == ".jsonl":
                return _published([json.loads(line) for line in lines])
            return _rebuilt(list(csv.DictReader(lines)))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no trace with shared beginnings: {error!r}") from error


def _published(lines: list[dict[str, object]]) -> Named:
    rows: list[TraceRow] = []
    names: list[tuple[bytes, ...]] = []
    for line in lines:
        arrival_ms, prompt, output, ids = (
            line[key] for key in ("timestamp", "input_length", "output_length", "hash_ids")
        )
        assert isinstance(arrival_ms, int) and isinstance(prompt, int) and isinstance(output, int)
        assert isinstance(ids, list)
        rows.append(TraceRow(arrival_ms / 1e3, prompt, output))
        names.append(tuple(_name(number) for number in ids[: prompt // BLOCK_TOKENS]))
    return rows, names


def _rebuilt(lines: list[dict[str, str]]) -> Named:
    """As bench/prefix.py: a prompt continues the latest earlier one that is long enough; beginnings of one block are
    those of one system prompt."""
    rows: list[TraceRow] = []
    names: list[tuple[bytes, ...]] = []
    number = 1
    for line in lines:
        prompt = int(line["prompt_tokens"])
        rows.append(TraceRow(float(line["arrival_s"]), prompt, int(line["output_tokens"])))
        whole = prompt // BLOCK_TOKENS
        shared = min(int(line["reusable_prefix_tokens"]) // BLOCK_TOKENS, whole)
        parent = next((earlier for earlier in reversed(names) if len(earlier) >= shared), ()) if shared > 1 else ()
        begins = parent[:shared] or (_name(0),) * shared
        names.append(begins + tuple(_name(number + at) for at in range(whole - shared)))
        number += whole - shared
    return rows, names


def _name(number: int) -> bytes:
    return number.to_bytes(NAME_BYTES, "big")
