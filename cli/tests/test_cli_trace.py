"""Reading traces: what is accepted, and where a malformed one is at fault."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_cli.trace import TraceError, TraceRow, parse_trace, read_trace

HEADER = "arrival_s,prompt_tokens,output_tokens"

rows = st.lists(
    st.builds(
        TraceRow,
        arrival_s=st.floats(0, 1e6, allow_nan=False),
        prompt_tokens=st.integers(1, 10**6),
        output_tokens=st.integers(1, 10**6),
        tier=st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), max_size=8).map(str.strip),
    ),
    min_size=1,
    max_size=30,
)


@given(rows)
def test_what_was_written_is_read_in_order_of_arrival(written: list[TraceRow]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["tier", "extra", "arrival_s", "prompt_tokens", "output_tokens"])
    for row in written:
        writer.writerow([row.tier, "x", repr(row.arrival_s), row.prompt_tokens, row.output_tokens])
    read = parse_trace(io.StringIO(text.getvalue(), newline=""))
    start_s = min(row.arrival_s for row in written)
    expected = sorted(written, key=lambda row: row.arrival_s)
    assert read == [TraceRow(r.arrival_s - start_s, r.prompt_tokens, r.output_tokens, r.tier) for r in expected]


@given(st.text(max_size=200))
def test_any_text_is_a_trace_or_a_trace_error(text: str) -> None:
    with contextlib.suppress(TraceError):
        parse_trace(io.StringIO(f"{HEADER}\n{text}", newline=""))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "t:1: no column 'arrival_s'"),
        ("time,prompt,output\n1,2,3\n", "t:1: no column 'arrival_s'"),
        (f"{HEADER}\n", "no requests"),
        (f"{HEADER}\n0,5,5\nsoon,5,5\n", "t:3: arrival_s must be a number of seconds, got 'soon'"),
        (f"{HEADER}\n0,5,5\n\n1,0,5\n", "t:4: prompt_tokens must be a whole number of at least 1, got '0'"),
        (f"{HEADER}\n0,5,-1\n", "t:2: output_tokens must be"),
        (f"{HEADER}\n0,5.5,1\n", "t:2: prompt_tokens must be"),
        (f"{HEADER}\nnan,5,1\n", "t:2: arrival_s must be"),
        (f"{HEADER}\n0,5\n", "t:2: output_tokens is empty"),
        (f'{HEADER}\n0,5,"1\n', "t:2: unexpected end of data"),
    ],
)
def test_a_malformed_trace_names_line_and_reason(text: str, says: str) -> None:
    with pytest.raises(TraceError, match="^t:|no requests") as error:
        parse_trace(io.StringIO(text, newline=""), "t")
    assert says in str(error.value)


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        read_trace(tmp_path / "none.csv")
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="not UTF-8"):
        read_trace(binary)


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_text(f"\ufeff{HEADER}\r\n3,1,2\r\n", encoding="utf-8")
    assert read_trace(path) == [TraceRow(0.0, 1, 2)]
