"""One side of a transfer, inside its process: a pool with known content, seen as blocks of any size."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hyperflexis_worker.cuda.gather import Grid
from hyperflexis_worker.cuda.peer import PeerTransport
from hyperflexis_worker.cuda.vmm import DeviceMemory
from hyperflexis_worker.kv.transport import Progress

SLICE_WORDS = 1 << 24
UNTOUCHED = -1
"""No word of any pattern."""
STUCK_S = 20.0


@dataclass
class Blocks:
    """A Storage, as far as a transport on the same host needs one."""

    total: int
    block_bytes: int
    address: int
    device: int
    layout: bytes = b"kv-check"

    def read(self, blocks: Rows[int]) -> bytes:
        raise AssertionError("blocks go from device to device, never through the host")

    def write(self, blocks: Rows[int], data: bytes) -> None:
        raise AssertionError("blocks go from device to device, never through the host")


def milliseconds(since: float) -> float:
    return round((time.perf_counter() - since) * 1e3, 3)


def pattern(words: torch.Tensor) -> torch.Tensor:
    """int32 of word numbers [..] in int64: differs between neighbours and between blocks, never UNTOUCHED."""
    return ((words * 2_654_435_761) ^ (words >> 7)).bitwise_and_(0x7FFFFFFF).to(torch.int32)


class Side:
    """What the actors have in common. The device is the first that they see, or KV_CHECK_DEVICE."""

    def __init__(self, device: int | None = None) -> None:
        if device is None:
            device = int(os.environ.get("KV_CHECK_DEVICE", 0))
        torch.cuda.set_device(device)
        self.device = device
        self.memory: DeviceMemory | None = None
        self.transport: PeerTransport | None = None
        self.words = torch.empty(0)
        self.blocks = Blocks(0, 0, 0, device)

    def make(self, nbytes: int) -> dict[str, Any]:
        """The pool."""
        began = time.perf_counter()
        self.memory = DeviceMemory.create(nbytes, self.device)
        took = milliseconds(began)
        self.words = self.memory.tensor().view(torch.int32)
        return {"bytes": self.memory.size, "create_ms": took, "device": torch.cuda.get_device_name(self.device)}

    def fill(self) -> None:
        for first in range(0, self.words.shape[0], SLICE_WORDS):
            part = self.words[first : first + SLICE_WORDS]
            part.copy_(pattern(torch.arange(first, first + part.shape[0], device=part.device)))
        torch.cuda.synchronize(self.device)

    def wipe(self) -> None:
        self.words.fill_(UNTOUCHED)
        torch.cuda.synchronize(self.device)

    def open(self, block_bytes: int, programs: int = 24, tile_bytes: int = 32_768, warps: int = 16) -> dict[str, Any]:
        """A transport over the pool seen as blocks of that size, in place of the one before."""
        assert self.memory is not None
        if self.transport is not None:
            self.transport.close()
        total = self.memory.size // block_bytes
        self.blocks = Blocks(total, block_bytes, self.memory.address, self.device)
        began = time.perf_counter()
        self.transport = PeerTransport(self.blocks, self.memory, Grid(programs, tile_bytes, warps))
        return {"open_ms": milliseconds(began), "metadata": self.transport.metadata(), "blocks": total}

    def link(self, peer: str, metadata: bytes) -> dict[str, Any]:
        assert self.transport is not None
        began = time.perf_counter()
        self.transport.connect(peer, metadata)
        took = milliseconds(began)
        rate = round(self.transport.gigabytes_per_s(peer), 1)
        return {"link_ms": took, "warm_up_gb_s": rate, "used": self.transport.used(peer)}

    def unlink(self, peer: str) -> float:
        assert self.transport is not None
        began = time.perf_counter()
        self.transport.disconnect(peer)
        return milliseconds(began)

    def release(self) -> float:
        """Transport and pool; the milliseconds of the pool."""
        if self.transport is not None:
            self.transport.close()
            self.transport = None
        self.words = torch.empty(0)
        began = time.perf_counter()
        if self.memory is not None:
            self.memory.close()
            self.memory = None
        return milliseconds(began)

    def gather(self, peer: str, nbytes: int, repeat: int, seed: int, programs: int) -> dict[str, Any]:
        """Random blocks of the peer into random blocks here, again and again; what came is compared word by word,
        and what should not have been touched too, once."""
        assert self.transport is not None
        self.transport.gather.grid = replace(self.transport.gather.grid, programs=programs)
        chance = np.random.default_rng(seed)
        count = min(max(1, nbytes // self.blocks.block_bytes), self.blocks.total)
        remote = chance.permutation(self.blocks.total)[:count]
        local = chance.permutation(self.blocks.total)[:count]
        self.wipe()
        device, wall = [], []
        for _ in range(repeat):
            began = time.perf_counter()
            handle = self.transport.post(peer, 0, remote, local)  # type: ignore[arg-type]
            passage = self.transport._under_way[handle][1]
            self.finish(handle)
            wall.append(time.perf_counter() - began)
            device.append(passage.seconds)
        moved = count * self.blocks.block_bytes / 1e9
        return {
            "blocks": count,
            "programs": programs,
            "gb_s": round(moved / statistics.median(device), 1),
            "gb_s_worst": round(moved / max(device), 1),
            "gb_s_host_to_host": round(moved / statistics.median(wall), 1),
            "wrong_blocks": self.wrong(remote, local),
        }

    def finish(self, handle: int) -> None:
        assert self.transport is not None
        give_up = time.monotonic() + STUCK_S
        while (progress := self.transport.poll(handle)) is Progress.PENDING:
            if time.monotonic() > give_up:
                raise TimeoutError(f"transfer {handle} not over in {STUCK_S:.0f} s")
        if progress is not Progress.DONE:
            raise RuntimeError(f"transfer {handle}: {progress}")

    def wrong(self, remote: Rows[int] | np.ndarray, local: Rows[int] | np.ndarray) -> int:
        """Blocks that do not hold what the peer's pattern says, or hold something and should not."""
        words = self.blocks.block_bytes // 4
        expected = torch.full((self.blocks.total,), -1, dtype=torch.int64, device=self.words.device)
        theirs = torch.as_tensor(np.asarray(remote), device=self.words.device)
        expected[torch.as_tensor(np.asarray(local), device=self.words.device)] = theirs
        pool = self.words[: self.blocks.total * words].view(-1, words)
        each = max(1, SLICE_WORDS // words)
        offsets = torch.arange(words, device=self.words.device)
        bad = torch.zeros((), dtype=torch.int64, device=self.words.device)
        for first in range(0, self.blocks.total, each):
            origin = expected[first : first + each].unsqueeze(1)
            right = torch.where(origin < 0, UNTOUCHED, pattern(origin * words + offsets))
            bad += (pool[first : first + each] != right).any(1).sum()
        return int(bad)


def timed(step: Callable[[], object], repeat: int) -> Iterator[float]:
    """Milliseconds of each."""
    for _ in range(repeat):
        began = time.perf_counter()
        step()
        yield milliseconds(began)
