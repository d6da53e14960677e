"""The CUDA driver, by cuda-bindings: calls that raise, and the context in which they run."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class CudaError(RuntimeError):
    """A call of the driver failed, or there is no driver; the message names call and result."""


@functools.cache
def bindings() -> Any:
    """The module cuda.bindings.driver, initialised. Raises CudaError."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise CudaError(f"cuda-bindings is not installed: {error}") from error
    try:
        (result,) = driver.cuInit(0)
    except RuntimeError as error:  # libcuda.so.1 is not there
        raise CudaError(f"cuInit: {error}") from error
    if int(result):
        raise CudaError(f"cuInit: {_name(result)}")
    return driver


def call(name: str, *arguments: Any) -> Any:
    """Calls a function of the driver; its value, if it has one. Raises CudaError."""
    result, *values = getattr(bindings(), name)(*arguments)
    if int(result):
        raise CudaError(f"{name}: {_name(result)}")
    return values[0] if values else None


@contextmanager
def primary_context(device: int) -> Iterator[None]:
    """The device's primary context, which is torch's too, is current on this thread meanwhile: a thread that only
    passes descriptors has none of its own."""
    call("cuCtxPushCurrent", _retained(device))
    try:
        yield
    finally:
        call("cuCtxPopCurrent")


def attribute(device: int, name: str) -> int:
    """CU_DEVICE_ATTRIBUTE_<name>."""
    which = getattr(bindings().CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(call("cuDeviceGetAttribute", which, call("cuDeviceGet", device)))


def uuid(device: int) -> bytes:
    """16 bytes, the same in every process of the host."""
    return bytes(call("cuDeviceGetUuid", call("cuDeviceGet", device)).bytes)


@functools.cache
def _retained(device: int) -> Any:
    # For the life of the process, as torch does.
    return call("cuDevicePrimaryCtxRetain", call("cuDeviceGet", device))


def _name(result: Any) -> str:
    return str(getattr(result, "name", result))
