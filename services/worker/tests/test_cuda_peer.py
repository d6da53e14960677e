"""The transport between GPUs of a host, over a driver that uses host memory: links, refusals, transfers, and that
nothing stays mapped. What the kernel does is checked by test_cuda_device and tests/gpu/kv_check.py."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_cuda_driver
import numpy as np
import pytest
from fake_cuda_driver import FakeDriver, bytes_at

from hyperflexis_worker.cuda import peer as peer_module
from hyperflexis_worker.cuda.peer import PeerTransport
from hyperflexis_worker.cuda.pieces import cut
from hyperflexis_worker.cuda.pool_export import PoolExport
from hyperflexis_worker.cuda.vmm import DeviceMemory
from hyperflexis_worker.kv.transport import LinkError, Progress, Transport

SIZE, TOTAL = 4_096, 32


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Where a socket may lie: pytest's own directories have longer names than a socket may."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


@dataclasses.dataclass
class Blocks:
    address: int
    total: int = TOTAL
    block_bytes: int = SIZE
    device: int = 0
    layout: bytes = b"layout"

    def read(self, blocks: Any) -> bytes:
        return b"".join(bytes(bytes_at(self.address + block * SIZE, SIZE)) for block in blocks)

    def write(self, blocks: Any, data: bytes) -> None: ...


class FakePassage:
    over = False
    broken = False


class FakeGather:
    """Copies at once, as the kernel's arithmetic says; tells of it when it is asked to."""

    rate = 361.0
    idle = True

    def __init__(self, device: int, block_bytes: int, longest: int, grid: Any) -> None:
        self._pieces = cut(block_bytes, 32_768)
        self.passages: list[Any] = []
        self.recycled: list[Any] = []

    def measure(self, source: int, blocks: int) -> float:
        if self.rate <= 0:
            raise RuntimeError("nothing came")
        return self.rate

    def start(self, source: int, target: int, remote: Any, local: Any) -> Any:
        for program in range(3):
            for index, start, length in self._pieces.spans(len(remote), program, 3):
                read = source + int(remote[index]) * self._pieces.block_bytes + start
                write = target + int(local[index]) * self._pieces.block_bytes + start
                bytes_at(write, length)[:] = bytes_at(read, length)
        self.passages.append(FakePassage())
        return self.passages[-1]

    def recycle(self, passage: Any) -> None:
        self.recycled.append(passage)

    def wait(self) -> None: ...


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    monkeypatch.setattr(peer_module, "Gather", FakeGather)
    return fake_cuda_driver.installed(monkeypatch)


class End:
    """A pool and its transport."""

    def __init__(self, device: int, **blocks: Any) -> None:
        self.memory = DeviceMemory.create(TOTAL * SIZE, device)
        self.blocks = Blocks(self.memory.address, device=device, **blocks)
        filling = np.random.default_rng(device).integers(0, 256, self.memory.size, dtype=np.uint8)
        bytes_at(self.memory.address, self.memory.size)[:] = filling.tobytes()
        self.transport = PeerTransport(self.blocks, self.memory)
        self.gather: Any = self.transport.gather

    def close(self) -> None:
        self.transport.close()
        self.memory.close()


@pytest.fixture
def ends(driver: FakeDriver) -> Iterator[tuple[End, End]]:
    before = len(os.listdir("/proc/self/fd"))
    ends = End(0), End(1)
    yield ends
    for end in ends:
        end.close()
    assert driver.held == (0, 0, 0, 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_blocks_go_where_they_should_and_nowhere_else(ends: tuple[End, End]) -> None:
    theirs, ours = ends
    link: Transport = ours.transport
    link.connect("peer:1", theirs.transport.metadata())
    assert (link.name, link.used("peer:1"), ours.transport.gigabytes_per_s("peer:1")) == ("peer", "cuda_vmm", 361.0)
    before = [ours.blocks.read([block]) for block in range(TOTAL)]
    remote, local = [5, 0, 31, 7], [1, 30, 2, 9]
    handle = link.post("peer:1", 1, remote, local)
    assert link.poll(handle) is Progress.PENDING
    ours.gather.passages[0].over = True
    assert link.poll(handle) is Progress.DONE
    assert ours.gather.recycled == ours.gather.passages
    with pytest.raises(KeyError):
        link.poll(handle)
    assert ours.blocks.read(local) == theirs.blocks.read(remote)
    rest = [block for block in range(TOTAL) if block not in local]
    assert ours.blocks.read(rest) == b"".join(before[block] for block in rest)


def test_a_device_that_failed_fails_the_transfer(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = ends
    ours.transport.connect("peer:1", theirs.transport.metadata())
    handle = ours.transport.post("peer:1", 1, [0], [1])

    def fail(passage: Any) -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as failing:
        failing.setattr(FakePassage, "over", property(fail))
        assert ours.transport.poll(handle) is Progress.FAILED
    assert not ours.gather.recycled


@pytest.mark.parametrize(
    ("remote", "local", "why"),
    [
        ([0], [TOTAL], "outside"),
        ([TOTAL], [0], "outside"),
        ([-1], [0], "outside"),
        ([2**40], [0], "outside"),
        ([0, 1], [0], "2 blocks cannot"),
        ([], [], "0 blocks"),
        ([0] * (TOTAL + 1), [1] * (TOTAL + 1), "33 blocks"),
    ],
)
def test_what_cannot_be_read_is_refused_before_it_begins(
    ends: tuple[End, End], remote: list[int], local: list[int], why: str
) -> None:
    theirs, ours = ends
    ours.transport.connect("peer:1", theirs.transport.metadata())
    with pytest.raises(LinkError, match=why):
        ours.transport.post("peer:1", 1, remote, local)
    with pytest.raises(LinkError, match="no link"):
        ours.transport.post("another", 1, [0], [0])
    assert not ours.gather.passages


def test_a_link_ends_only_after_its_transfers(ends: tuple[End, End], driver: FakeDriver) -> None:
    theirs, ours = ends
    ours.transport.disconnect("unknown")
    ours.transport.connect("peer:1", theirs.transport.metadata())
    ours.transport.post("peer:1", 1, [0], [1])
    with pytest.raises(LinkError, match="under way"):
        ours.transport.disconnect("peer:1")
    assert ours.transport.used("peer:1") == "cuda_vmm"
    ours.gather.passages[0].over = True
    ours.transport.disconnect("peer:1")
    assert ours.transport.used("peer:1") == ""
    assert len(driver.mapped) == 2


def test_a_link_can_be_made_anew(ends: tuple[End, End], driver: FakeDriver) -> None:
    for _ in range(3):
        ends[1].transport.connect("peer:1", ends[0].transport.metadata())
    assert len(driver.mapped) == 3


def changed(metadata: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(metadata) | fields).encode()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"boot_id": "another"}, "another host"),
        ({"boot_id": ""}, "another host"),
        ({"layout": b"other".hex()}, "another layout"),
        ({"block_bytes": SIZE // 2}, "another layout"),
        ({"token": 64 * "0"}, "does not know our token"),
        ({"socket": "@nobody"}, "cannot reach"),
        ({"size": 1 << 40}, "cannot be mapped: cuMemMap"),
    ],
)
def test_peers_that_do_not_fit_are_refused(
    ends: tuple[End, End], driver: FakeDriver, fields: dict[str, Any], why: str
) -> None:
    theirs, ours = ends
    with pytest.raises(LinkError, match=why):
        ours.transport.connect("peer:1", changed(theirs.transport.metadata(), **fields))
    assert ours.transport.used("peer:1") == ""
    assert len(driver.mapped) == 2


def test_another_host_is_not_even_asked(ends: tuple[End, End], driver: FakeDriver) -> None:
    asked = changed(ends[0].transport.metadata(), boot_id="another")
    before = driver.calls.count("cuMemExportToShareableHandle")
    with pytest.raises(LinkError):
        ends[1].transport.connect("peer:1", asked)
    assert driver.calls.count("cuMemExportToShareableHandle") == before


@pytest.mark.parametrize("idle", [True, False])
def test_memory_that_cannot_be_read_stays_mapped_only_while_something_may_read(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    theirs, ours = End(0), End(1)
    ours.gather.rate, ours.gather.idle = 0.0, idle
    with pytest.raises(LinkError, match="cannot be read: nothing came"):
        ours.transport.connect("peer:1", theirs.transport.metadata())
    assert len(driver.mapped) == (2 if idle else 3)
    theirs.close()
    ours.close()


def test_no_one_gets_a_pool_whose_transport_is_closed(ends: tuple[End, End]) -> None:
    theirs, ours = ends
    metadata = theirs.transport.metadata()
    theirs.transport.close()
    with pytest.raises(LinkError, match="cannot reach"):
        ours.transport.connect("peer:1", metadata)


def test_blocks_outside_the_memory_cannot_be_exported(driver: FakeDriver) -> None:
    memory = DeviceMemory.create(1, 0)
    for blocks in (Blocks(memory.address, total=1 << 20), Blocks(memory.address - SIZE, total=1)):
        with pytest.raises(ValueError, match="do not lie"):
            PoolExport(blocks, memory)
    memory.close()


@pytest.mark.parametrize(
    ("module", "absent"), [("pool_export", {"torch", "triton", "cuda"}), ("peer", {"triton", "cuda"})]
)
def test_nothing_is_imported_before_it_is_used(module: str, absent: set[str]) -> None:
    code = f"import sys, hyperflexis_worker.cuda.{module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not absent & set(loaded)


def test_a_socket_may_lie_in_a_shared_directory(driver: FakeDriver, short_path: Path) -> None:
    end = End(0)
    shared = PoolExport(end.blocks, end.memory, short_path)
    assert Path(shared.address.socket).parent == short_path
    shared.close()
    end.close()
