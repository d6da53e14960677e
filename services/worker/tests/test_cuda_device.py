"""The gather on a real device, and its kernel on Triton's interpreter where there is none."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from hyperflexis_worker.kv.transport import Progress

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
INTERPRET = """
import random, torch
from hyperflexis_worker.cuda.gather_kernel import gather_pieces
from hyperflexis_worker.cuda.pieces import cut
chance = random.Random(1)
for size, moved, tile, programs in [(16, 5, 1024, 2), (16384, 7, 32768, 3), (12288, 9, 32768, 4), (49168, 4, 32768, 2)]:
    pieces, total = cut(size, tile), 3 * moved
    source = torch.randint(0, 256, (total, size), dtype=torch.uint8)
    target = torch.full_like(source, 7)
    lists = [torch.tensor(chance.sample(range(total), moved), dtype=torch.int32) for _ in range(2)]
    expected = target.clone()
    expected[lists[1].long()] = source[lists[0].long()]
    gather_pieces[(min(programs, pieces.tiles(moved)),)](
        source.data_ptr(), target.data_ptr(), *lists, moved * pieces.parts, pieces.parts, size,
        ROWS=pieces.rows, VECTORS=pieces.piece_bytes // 16, WHOLE=pieces.whole,
    )
    assert torch.equal(target, expected), pieces
"""


@needs_triton
def test_the_kernel_copies_what_its_arithmetic_says() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERPRET],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr


@needs_cuda
@pytest.mark.parametrize("size", [16, 4_096, 12_288, 49_168, 2 << 20])
def test_blocks_move_between_two_pools_of_one_device(size: int) -> None:
    from hyperflexis_worker.cuda.peer import PeerTransport
    from hyperflexis_worker.cuda.vmm import DeviceMemory

    class Blocks:
        def __init__(self, memory: DeviceMemory) -> None:
            self.total, self.block_bytes, self.address = memory.size // size, size, memory.address
            self.device, self.layout = memory.device, b""

        def read(self, blocks: Any) -> bytes:
            raise AssertionError("blocks go from device to device, never through the host")

        def write(self, blocks: Any, data: bytes) -> None:
            raise AssertionError("blocks go from device to device, never through the host")

    memories = [DeviceMemory.create(16 << 20, 0) for _ in range(2)]
    theirs, ours = (memory.tensor() for memory in memories)
    theirs.random_()
    ours.fill_(7)
    torch.cuda.synchronize()
    source, target = (PeerTransport(Blocks(memory), memory) for memory in memories)
    target.connect("peer", source.metadata())
    chance = np.random.default_rng(size)
    total = memories[0].size // size
    remote, local = (chance.permutation(total)[: max(1, total // 2)] for _ in range(2))
    handle = target.post("peer", 1, remote.tolist(), local.tolist())
    while (progress := target.poll(handle)) is Progress.PENDING:
        pass
    assert progress is Progress.DONE
    expected = torch.full_like(ours, 7)
    used = total * size
    expected[:used].view(total, size)[torch.from_numpy(local).cuda()] = theirs[:used].view(total, size)[
        torch.from_numpy(remote).cuda()
    ]
    assert torch.equal(ours, expected)
    for transport in (source, target):
        transport.close()
    for memory in memories:
        memory.close()
