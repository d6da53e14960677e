"""Gathers on a GPU: one stream below all other work, and what a transfer needs kept from one to the next."""

from __future__ import annotations

import time
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hyperflexis_worker.cuda.pieces import cut

ALIGNED_IDS = 64
"""Ids: the second list of a transfer begins at a multiple of it, so that all have one and the same kernel."""
WARM_UP_BYTES = 64 << 20
WARM_UP_S = 10.0

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Grid:
    """The programs of a gather, few: uncapped, one slowed a copy beside it 4.3 times. 18 read 334 GB/s and more of 370
    and slow decodes on the GPU that reads by 8 %; 20 slow them by 10, 16 read as little as 310 where blocks are no
    power of two (two H200, bench/results/kv-gpu.json)."""

    programs: int = 18
    tile_bytes: int = 32_768
    """What one program has in flight."""
    warps: int = 16


class Passage:
    """One gather under way, or the buffers for the next: made once, used again and again."""

    def __init__(self, ids: int, device: torch.device) -> None:
        self.host = torch.empty(ids, dtype=torch.int32, pin_memory=True)
        self.staged = torch.empty(ids, dtype=torch.int32, device=device)
        self.lists: Ids = self.host.numpy()
        self.began = torch.cuda.Event(enable_timing=True)
        self.ended = torch.cuda.Event(enable_timing=True)

    @property
    def over(self) -> bool:
        """Asks, never waits. Raises RuntimeError where the device has failed: nothing runs on it any more."""
        return bool(self.ended.query())

    @property
    def seconds(self) -> float:
        """What it took on the device, once it is over."""
        return float(self.began.elapsed_time(self.ended)) / 1e3


class Gather:
    """Copies blocks between two address ranges that the device can read and write."""

    def __init__(self, device: int, block_bytes: int, longest: int, grid: Grid | None = None) -> None:
        """`longest`: blocks of a transfer, at most. Compiles the kernel: seconds the first time on a machine. Raises
        ValueError for blocks of a size that it cannot copy, ImportError without Triton."""
        from hyperflexis_worker.cuda.gather_kernel import gather_pieces

        self._kernel = gather_pieces
        self.grid = grid or Grid()
        """`programs` may change between transfers."""
        self._pieces = cut(block_bytes, self.grid.tile_bytes)
        self._device = torch.device("cuda", device)
        self._longest = longest
        # Priorities only go up from that of a plain stream: what must not wait for gathers takes a higher one.
        self._stream = torch.cuda.Stream(self._device, priority=0)
        self._free: list[Passage] = []
        with torch.cuda.device(self._device):
            self._compile(block_bytes)

    def start(self, source: int, target: int, remote: Rows[int] | Ids, local: Rows[int] | Ids) -> Passage:
        """Blocks `remote` from address `source` on, onto blocks `local` from `target` on, pairwise and after all
        that was started before. What else used those blocks has ended. Ids are taken as they are."""
        count = len(remote)
        second = -(-count // ALIGNED_IDS) * ALIGNED_IDS
        passage = self._free.pop() if self._free else self._passage()
        passage.lists[:count] = remote
        passage.lists[second : second + count] = local
        used = second + count
        with torch.cuda.stream(self._stream):
            passage.staged[:used].copy_(passage.host[:used], non_blocking=True)
            passage.began.record()
            self._launch(source, target, passage.staged[:count], passage.staged[second:used])
            passage.ended.record()
        return passage

    def recycle(self, passage: Passage) -> None:
        """Its buffers serve another transfer; it must be over."""
        self._free.append(passage)

    def measure(self, source: int, blocks: int) -> float:
        """GB/s of reading some of the `blocks` from address `source` on, into scratch memory; waits for it. Raises
        RuntimeError where that takes too long, or the device has failed."""
        size = self._pieces.block_bytes
        count = min(blocks, self._longest, max(1, WARM_UP_BYTES // size))
        scratch = torch.empty(count * size, dtype=torch.uint8, device=self._device)
        # What the allocator gives may still be in use by what was launched before.
        torch.cuda.current_stream(self._device).synchronize()
        spread, packed = np.arange(count, dtype=np.int32) * (blocks // count), np.arange(count, dtype=np.int32)
        seconds = 0.0
        for _ in range(2):  # the first meets pages that this device has not read yet
            passage = self.start(source, scratch.data_ptr(), spread, packed)
            give_up = time.monotonic() + WARM_UP_S
            while not passage.over:
                if time.monotonic() > give_up:
                    raise RuntimeError(f"{scratch.nbytes} bytes took more than {WARM_UP_S:g} s")
                time.sleep(0)
            seconds = passage.seconds
            self.recycle(passage)
        return scratch.nbytes / seconds / 1e9

    @property
    def idle(self) -> bool:
        """All that was started is over, and the device has not failed."""
        try:
            return bool(self._stream.query())
        except RuntimeError:
            return False

    def wait(self) -> None:
        """Until all that was started is over. Raises RuntimeError where the device has failed."""
        self._stream.synchronize()

    def _launch(self, source: int, target: int, remote: torch.Tensor, local: torch.Tensor) -> None:
        pieces, count = self._pieces, remote.shape[0]
        self._kernel[(min(self.grid.programs, pieces.tiles(count)),)](
            source,
            target,
            remote,
            local,
            count * pieces.parts,
            pieces.parts,
            pieces.block_bytes,
            ROWS=pieces.rows,
            VECTORS=pieces.piece_bytes // 16,
            WHOLE=pieces.whole,
            num_warps=self.grid.warps,
            num_stages=1,
        )

    def _passage(self) -> Passage:
        # Two lists, the first padded. Pinned memory is the current device's, and a thread's may be another one.
        with torch.cuda.device(self._device):
            return Passage(2 * (self._longest + ALIGNED_IDS), self._device)

    def _compile(self, block_bytes: int) -> None:
        scratch = torch.zeros(2 * block_bytes, dtype=torch.uint8, device=self._device)
        torch.cuda.synchronize(self._device)  # the zeros are another stream's
        passage = self.start(scratch.data_ptr(), scratch.data_ptr(), [0], [1])
        self.wait()
        self.recycle(passage)
