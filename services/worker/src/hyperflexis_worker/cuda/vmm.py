"""GPU memory by CUDA's virtual memory management: it can be passed to another process as a file descriptor.

Physical memory stays until the last mapping and the last descriptor, in whatever process, is gone: a peer that goes
on reading after its owner has died reads right bytes, and a descriptor left open keeps gigabytes from returning.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING, Any

from hyperflexis_worker.cuda.driver import CudaError, attribute, bindings, call, primary_context

if TYPE_CHECKING:
    from torch import Tensor

NEEDED = ("VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED", "HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED")


def check_device(device: int) -> None:
    """Raises CudaError where the device cannot share memory so."""
    missing = [name for name in NEEDED if not attribute(device, name)]
    if missing:
        raise CudaError(f"device {device} lacks {', '.join(missing)}")


class DeviceMemory:
    """Physical memory and the addresses it is mapped to, readable and writable by `device` and those in `access`.
    Threads may share it; whoever closes it knows that nothing on the device uses it any more."""

    def __init__(self, handle: Any, size: int, device: int, access: Rows[int] = ()) -> None:
        """Takes the handle over, also where it raises CudaError. `size` bytes: a multiple of the granularity."""
        self.size = size
        self.device = device
        self._handle: Any = handle
        self._reserved: Any = None
        self._mapped = False
        try:
            with primary_context(device):
                self._reserved = call("cuMemAddressReserve", size, 0, 0, 0)
                call("cuMemMap", self._reserved, size, 0, handle, 0)
                self._mapped = True
                rights = [_rights(one) for one in dict.fromkeys((device, *access))]
                call("cuMemSetAccess", self._reserved, size, rights, len(rights))
        except BaseException:
            self._undo()
            raise

    @classmethod
    def create(cls, nbytes: int, device: int, access: Rows[int] = (), rdma: bool = False) -> DeviceMemory:
        """New memory on `device`, at least `nbytes`, with arbitrary content. `rdma`: network cards can be told of
        it too. Raises CudaError."""
        if nbytes <= 0:
            raise ValueError(f"{nbytes} bytes cannot be allocated")
        check_device(device)
        wanted = _properties(device, rdma)
        with primary_context(device):
            best = bindings().CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_RECOMMENDED
            granularity = int(call("cuMemGetAllocationGranularity", wanted, best))
            size = -(-nbytes // granularity) * granularity
            handle = call("cuMemCreate", size, wanted, 0)
        return cls(handle, size, device, access)

    @classmethod
    def adopt(cls, descriptor: int, size: int, device: int) -> DeviceMemory:
        """Maps another process's memory for `device`. `size`: the exporter's, to the byte. The descriptor is closed
        in any case. Raises CudaError."""
        try:
            with primary_context(device):
                handle = call("cuMemImportFromShareableHandle", descriptor, _descriptor_type())
        finally:
            os.close(descriptor)
        return cls(handle, size, device)

    @property
    def address(self) -> int:
        """Of the first byte, on the device and in this process. Raises ValueError once closed."""
        if self._reserved is None:
            raise ValueError("this memory is closed")
        return int(self._reserved)

    def export(self) -> int:
        """A new file descriptor of it, for the caller to close. Raises CudaError, ValueError."""
        if self._handle is None:
            raise ValueError("this memory is closed")
        with primary_context(self.device):
            return int(call("cuMemExportToShareableHandle", self._handle, _descriptor_type(), 0))

    def tensor(self) -> Tensor:
        """uint8 [size] over it; the memory does not live longer for it."""
        import torch

        found = torch.as_tensor(_Bytes(self.address, self.size), device=f"cuda:{self.device}")
        if found.data_ptr() != self.address:
            raise CudaError("torch copied the memory instead of looking at it")
        return found

    def close(self) -> None:
        """Gives addresses and memory back; the second time nothing happens. Raises CudaError for the first step that
        failed, after all have been tried."""
        if errors := self._undo():
            raise errors[0]

    def _undo(self) -> list[CudaError]:
        steps: list[tuple[Any, ...]] = []
        if self._mapped:
            steps.append(("cuMemUnmap", self._reserved, self.size))
        if self._handle is not None:
            steps.append(("cuMemRelease", self._handle))
        if self._reserved is not None:
            steps.append(("cuMemAddressFree", self._reserved, self.size))
        self._mapped, self._handle, self._reserved = False, None, None
        errors = []
        for step in steps:
            try:
                with primary_context(self.device):
                    call(*step)
            except CudaError as error:
                errors.append(error)
        return errors


class _Bytes:
    """What torch asks of an object to look at its memory."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def _descriptor_type() -> Any:
    return bindings().CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


def _properties(device: int, rdma: bool) -> Any:
    driver = bindings()
    wanted = driver.CUmemAllocationProp()
    wanted.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    wanted.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    wanted.location.id = device
    wanted.requestedHandleTypes = _descriptor_type()
    if rdma and attribute(device, "GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED"):
        wanted.allocFlags.gpuDirectRDMACapable = 1
    return wanted


def _rights(device: int) -> Any:
    driver = bindings()
    rights = driver.CUmemAccessDesc()
    rights.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    rights.location.id = device
    rights.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    return rights
