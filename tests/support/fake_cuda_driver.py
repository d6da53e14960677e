"""cuda.bindings.driver as far as cuda.vmm calls it, over host memory: descriptors and mappings are real ones.

A GPU's memory is a memfd, so that what one process exports another can map, and both see the same bytes.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import sys
from enum import IntEnum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

GRANULARITY = 65_536
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FIXED = 0x10
_PRIVATE_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class Result(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2


class _Attributes:
    def __getattr__(self, name: str) -> str:
        return name.removeprefix("CU_DEVICE_ATTRIBUTE_")


class FakeDriver:
    """Counts what is held; `failing` names calls that refuse, `lacking` attributes that the device has not."""

    CUdevice_attribute = _Attributes()
    CUmemAllocationHandleType = SimpleNamespace(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR="fd")
    CUmemAllocationType = SimpleNamespace(CU_MEM_ALLOCATION_TYPE_PINNED="pinned")
    CUmemLocationType = SimpleNamespace(CU_MEM_LOCATION_TYPE_DEVICE="device")
    CUmemAccess_flags = SimpleNamespace(CU_MEM_ACCESS_FLAGS_PROT_READWRITE="rw")
    CUmemAllocationGranularity_flags = SimpleNamespace(CU_MEM_ALLOC_GRANULARITY_RECOMMENDED="best")

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.lacking: set[str] = set()
        self.handles: set[int] = set()
        self.reserved: dict[int, int] = {}
        self.mapped: dict[int, int] = {}
        self.calls: list[str] = []
        self.contexts = 0

    @property
    def held(self) -> tuple[int, int, int, int]:
        """Handles, reservations, mappings, contexts on the stack: all 0 when all was given back."""
        return len(self.handles), len(self.reserved), len(self.mapped), self.contexts

    def __getattr__(self, name: str) -> Any:
        if name.startswith("cu") and hasattr(self, f"_{name}"):
            return lambda *arguments: self._called(name, *arguments)
        raise AttributeError(name)

    def _called(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        self.calls.append(name)
        if name in self.failing:
            return (Result.CUDA_ERROR_OUT_OF_MEMORY, None)
        try:
            value = getattr(self, f"_{name}")(*arguments)
        except (OSError, KeyError, AssertionError):
            return (Result.CUDA_ERROR_INVALID_VALUE, None)
        return (Result.CUDA_SUCCESS,) if value is None else (Result.CUDA_SUCCESS, value)

    def CUmemAllocationProp(self) -> SimpleNamespace:
        return SimpleNamespace(location=SimpleNamespace(), allocFlags=SimpleNamespace())

    def CUmemAccessDesc(self) -> SimpleNamespace:
        return SimpleNamespace(location=SimpleNamespace())

    def _cuInit(self, flags: int) -> None: ...

    def _cuDeviceGet(self, device: int) -> int:
        return device

    def _cuDeviceGetAttribute(self, name: str, device: int) -> int:
        return int(name not in self.lacking)

    def _cuDeviceGetUuid(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(bytes=bytes([device]) * 16)

    def _cuDevicePrimaryCtxRetain(self, device: int) -> str:
        return f"context {device}"

    def _cuCtxPushCurrent(self, context: str) -> None:
        self.contexts += 1

    def _cuCtxPopCurrent(self) -> str:
        self.contexts -= 1
        return "context"

    def _cuCtxSynchronize(self) -> None: ...

    def _cuMemGetAllocationGranularity(self, wanted: Any, option: str) -> int:
        return GRANULARITY

    def _cuMemCreate(self, size: int, wanted: Any, flags: int) -> int:
        assert size % GRANULARITY == 0
        handle = os.memfd_create("gpu")
        os.ftruncate(handle, size)
        self.handles.add(handle)
        return handle

    def _cuMemRelease(self, handle: int) -> None:
        self.handles.remove(handle)
        os.close(handle)

    def _cuMemAddressReserve(self, size: int, alignment: int, hint: int, flags: int) -> int:
        address = int(_LIBC.mmap(None, size, 0, _PRIVATE_ANONYMOUS, -1, 0))
        self.reserved[address] = size
        return address

    def _cuMemAddressFree(self, address: int, size: int) -> None:
        assert self.reserved.pop(address) == size and address not in self.mapped
        _LIBC.munmap(address, size)

    def _cuMemMap(self, address: int, size: int, offset: int, handle: int, flags: int) -> None:
        assert self.reserved[address] == size <= os.fstat(handle).st_size
        got = _LIBC.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _FIXED, handle, 0)
        assert got == address
        self.mapped[address] = size

    def _cuMemSetAccess(self, address: int, size: int, rights: list[Any], count: int) -> None:
        assert self.mapped[address] == size and len(rights) == count

    def _cuMemUnmap(self, address: int, size: int) -> None:
        assert self.mapped.pop(address) == size
        _LIBC.mmap(address, size, 0, _PRIVATE_ANONYMOUS | _FIXED, -1, 0)

    def _cuMemExportToShareableHandle(self, handle: int, kind: str, flags: int) -> int:
        assert handle in self.handles
        return os.dup(handle)

    def _cuMemImportFromShareableHandle(self, descriptor: int, kind: str) -> int:
        handle = os.dup(descriptor)
        self.handles.add(handle)
        return handle

    def _cuMemsetD32(self, address: int, value: int, count: int) -> None:
        (ctypes.c_uint32 * count).from_address(address)[:] = [value] * count


def install(driver: FakeDriver, modules: dict[str, Any] | None = None) -> None:
    """From here on `from cuda.bindings import driver` is it."""
    bindings = ModuleType("cuda.bindings")
    bindings.driver = driver  # type: ignore[attr-defined]
    cuda = ModuleType("cuda")
    cuda.bindings = bindings  # type: ignore[attr-defined]
    target = sys.modules if modules is None else modules
    target["cuda"], target["cuda.bindings"] = cuda, bindings


def installed(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    """For one test."""
    from hyperflexis_worker.cuda import driver as calls
    from hyperflexis_worker.cuda import vmm

    driver = FakeDriver()
    fakes: dict[str, Any] = {}
    install(driver, fakes)
    for name, module in fakes.items():
        monkeypatch.setitem(sys.modules, name, module)
    # Caches of this test's own: what it caches goes with it.
    for name in ("bindings", "_retained"):
        monkeypatch.setattr(calls, name, functools.cache(getattr(calls, name).__wrapped__))
    monkeypatch.setattr(vmm, "bindings", calls.bindings)
    return driver


def bytes_at(address: int, size: int) -> memoryview:
    """Of the fake GPU, to read and to write."""
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")
