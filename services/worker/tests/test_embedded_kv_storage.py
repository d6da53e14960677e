from __future__ import annotations

import ctypes

import pytest
import torch

from hyperflexis_worker.embedded.kv_storage import TorchStorage


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_block_of_all_layers_is_one_region(dtype: torch.dtype) -> None:
    pool = torch.arange(5 * 2 * 3 * 2 * 4 * 8, dtype=torch.float64).view(5, 2, 3, 2, 4, 8).to(dtype)
    storage, there = TorchStorage(pool, b"x"), torch.zeros_like(pool)
    assert (storage.total, storage.block_bytes, storage.device) == (5, pool[0].nbytes, -1)
    data = storage.read([4, 1])
    assert data[: storage.block_bytes] == ctypes.string_at(
        storage.address + 4 * storage.block_bytes, storage.block_bytes
    )
    TorchStorage(there, b"x").write([2, 3], data)
    assert torch.equal(there[2], pool[4]) and torch.equal(there[3], pool[1])
    assert not there[[0, 1, 4]].any()
    storage.write([], b"")
    with pytest.raises(ValueError, match="for 1 blocks of"):
        storage.write([1], data)
    with pytest.raises(ValueError, match="one after the other"):
        TorchStorage(pool.transpose(1, 2), b"x")
