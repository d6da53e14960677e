"""Shared beginnings of prompts, as published and as rebuilt."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefix_trace import named_trace


def test_published_names_are_those_of_full_blocks(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(
        '{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
        '{"timestamp": 1500, "input_length": 1536, "output_length": 7, "hash_ids": [0, 1, 3]}\n',
        encoding="utf-8",
    )
    rows, names = named_trace(path)
    assert [(row.arrival_s, row.prompt_tokens, row.output_tokens) for row in rows] == [(0.0, 1100, 5), (1.5, 1536, 7)]
    assert [len(each) for each in names] == [2, 3]
    assert names[0] == names[1][:2]


def test_rebuilt_prompts_share_what_the_trace_says(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    lines = [
        "arrival_s,prompt_tokens,output_tokens,reusable_prefix_tokens",
        "0,2048,1,0",
        "1,3000,1,1536",
        "2,600,1,512",
    ]
    path.write_text("\n".join([*lines, "3,1024,1,512"]) + "\n", encoding="utf-8")
    _, names = named_trace(path)
    assert [len(each) for each in names] == [4, 5, 1, 2]
    assert names[1][:3] == names[0][:3] and names[1][3] != names[0][3]
    assert names[2][0] == names[3][0] != names[0][0]  # one block: the system prompt


def test_a_trace_without_shared_beginnings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="shared beginnings"):
        named_trace(path)
