"""GPU memory, over a driver that uses host memory: what fails leaves nothing behind, and closing twice is once."""

from __future__ import annotations

import os
import sys

import fake_cuda_driver
import pytest
from fake_cuda_driver import GRANULARITY, FakeDriver, bytes_at

from hyperflexis_worker.cuda import driver as calls
from hyperflexis_worker.cuda.driver import CudaError
from hyperflexis_worker.cuda.vmm import NEEDED, DeviceMemory

NOTHING = (0, 0, 0, 0)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    return fake_cuda_driver.installed(monkeypatch)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(("asked", "granules"), [(1, 1), (GRANULARITY, 1), (GRANULARITY + 1, 2)])
def test_sizes_are_rounded_up(driver: FakeDriver, asked: int, granules: int) -> None:
    memory = DeviceMemory.create(asked, 0)
    assert memory.size == granules * GRANULARITY
    memory.close()
    assert driver.held == NOTHING


def test_two_mappings_of_one_memory_hold_the_same_bytes(driver: FakeDriver) -> None:
    before = open_descriptors()
    owner = DeviceMemory.create(3 * GRANULARITY, 0, access=(1,))
    bytes_at(owner.address, owner.size)[5:9] = b"pool"
    peer = DeviceMemory.adopt(owner.export(), owner.size, 1)
    assert peer.address != owner.address
    owner.close()
    assert bytes(bytes_at(peer.address, peer.size)[5:9]) == b"pool", "memory lives as long as its last mapping"
    peer.close()
    assert driver.held == NOTHING
    assert open_descriptors() == before


def test_closing_again_does_nothing(driver: FakeDriver) -> None:
    memory = DeviceMemory.create(1, 0)
    memory.close()
    before = list(driver.calls)
    memory.close()
    assert driver.calls == before
    with pytest.raises(ValueError, match="closed"):
        _ = memory.address
    with pytest.raises(ValueError, match="closed"):
        memory.export()


@pytest.mark.parametrize(
    "name", ["cuMemGetAllocationGranularity", "cuMemCreate", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"]
)
def test_a_call_that_fails_is_named_and_leaves_nothing(driver: FakeDriver, name: str) -> None:
    driver.failing = {name}
    with pytest.raises(CudaError, match=f"{name}: CUDA_ERROR_OUT_OF_MEMORY"):
        DeviceMemory.create(1, 0)
    assert driver.held == NOTHING


@pytest.mark.parametrize("name", ["cuMemImportFromShareableHandle", "cuMemMap", "cuMemSetAccess", "cuCtxPushCurrent"])
def test_a_descriptor_is_closed_also_where_it_cannot_be_mapped(driver: FakeDriver, name: str) -> None:
    descriptor = os.memfd_create("pool")
    os.ftruncate(descriptor, GRANULARITY)
    driver.failing = {name}
    with pytest.raises(CudaError, match=name):
        DeviceMemory.adopt(descriptor, GRANULARITY, 0)
    with pytest.raises(OSError):
        os.fstat(descriptor)
    assert driver.held == NOTHING


def test_closing_goes_on_after_a_step_that_failed(driver: FakeDriver) -> None:
    memory = DeviceMemory.create(1, 0)
    driver.failing = {"cuMemRelease"}
    with pytest.raises(CudaError, match="cuMemRelease"):
        memory.close()
    assert driver.held == (1, 0, 0, 0)
    memory.close()


@pytest.mark.parametrize("name", NEEDED)
def test_a_device_that_cannot_share_says_what_it_lacks(driver: FakeDriver, name: str) -> None:
    driver.lacking = {name}
    with pytest.raises(CudaError, match=f"device 0 lacks {name}"):
        DeviceMemory.create(1, 0)


def test_nothing_cannot_be_allocated(driver: FakeDriver) -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        DeviceMemory.create(0, 0)


@pytest.mark.parametrize("capable", [True, False])
def test_network_cards_are_told_of_where_they_can_be(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, capable: bool
) -> None:
    driver.lacking = set() if capable else {"GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED"}
    seen: list[int] = []
    create = driver._cuMemCreate

    def spy(size: int, wanted: object, flags: int) -> int:
        seen.append(vars(wanted.allocFlags).get("gpuDirectRDMACapable", 0))  # type: ignore[attr-defined]
        return create(size, wanted, flags)

    monkeypatch.setattr(driver, "_cuMemCreate", spy)
    DeviceMemory.create(1, 0, rdma=True).close()
    DeviceMemory.create(1, 0).close()
    assert seen == [int(capable), 0]


def test_without_bindings_or_driver_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.bindings.cache_clear()
    monkeypatch.setitem(sys.modules, "cuda", None)
    with pytest.raises(CudaError, match="cuda-bindings is not installed"):
        DeviceMemory.create(1, 0)
