"""The metadata of a mapped pool comes from another process: anything but what it should be is an error, no crash."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hyperflexis_worker.cuda.pool_export import PoolAddress
from hyperflexis_worker.kv.transport import LinkError

ADDRESS = PoolAddress("boot", "@socket", 64 * "a", "gpu", 1 << 20, 0, 4_096, 32, "00")


def test_metadata_comes_back_as_it_was() -> None:
    assert PoolAddress.decode(ADDRESS.encode()) == ADDRESS


@given(st.binary(max_size=200) | st.sampled_from([b"[" * 100_000, b"null", b"{}", b'{"version": 1}']))
def test_other_bytes_are_link_errors(data: bytes) -> None:
    with pytest.raises(LinkError):
        PoolAddress.decode(data)


@given(
    name=st.sampled_from([field.name for field in dataclasses.fields(PoolAddress)] + ["version", "more"]),
    value=st.none() | st.booleans() | st.integers(max_value=-1) | st.floats() | st.lists(st.text()),
)
def test_fields_of_another_kind_are_link_errors(name: str, value: Any) -> None:
    assume(name != "version" or value != 1)
    with pytest.raises(LinkError):
        PoolAddress.decode(json.dumps(json.loads(ADDRESS.encode()) | {name: value}).encode())


@pytest.mark.parametrize("fields", [{"total": 1 << 30}, {"offset": 1 << 20}, {"token": "aa"}, {"token": 64 * "z"}])
def test_sizes_and_tokens_that_cannot_be_are_link_errors(fields: dict[str, Any]) -> None:
    with pytest.raises(LinkError):
        PoolAddress.decode(json.dumps(json.loads(ADDRESS.encode()) | fields).encode())
