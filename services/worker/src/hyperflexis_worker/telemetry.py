"""What the GPU says of itself, through NVML; nothing where there is no GPU."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pynvml  # type: ignore[import-untyped]

from hyperflexis.scheduler.v1 import worker_session_pb2

Value = TypeVar("Value")


class GpuTelemetry:
    """Reads one GPU. `read()` gives None where NVML or the GPU is missing."""

    def __init__(self, device: str, nvml: Any = pynvml, environment: Mapping[str, str] = os.environ) -> None:
        self._nvml = nvml
        self._handle: Any = None
        self._board: Any = None
        """The GPU that carries it: itself, but for a MIG slice, which has no power or temperature of its own."""
        if device.startswith("cuda"):
            index = int(device.partition(":")[2] or 0)
            visible = environment.get("CUDA_VISIBLE_DEVICES")
            with contextlib.suppress(nvml.NVMLError):
                nvml.nvmlInit()
                self._handle = self._board = self._find(index, visible)
            if self._handle is not None:
                parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle
                self._board = self._ask(lambda: parent(self._handle), self._handle)

    def _find(self, index: int, visible: str | None) -> Any:
        """torch counts the devices that CUDA_VISIBLE_DEVICES names, by number or UUID; NVML counts all there are.

        Where it is not set, both count alike if all GPUs are of one kind, or with CUDA_DEVICE_ORDER=PCI_BUS_ID.
        """
        if visible is None:
            return self._nvml.nvmlDeviceGetHandleByIndex(index)
        # CUDA ignores what comes after the first name that is none.
        names = list(itertools.takewhile(lambda name: name not in ("", "-1"), map(str.strip, visible.split(","))))
        if index >= len(names):
            return None
        name = names[index]
        if name.isdigit():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(name))
        try:
            return self._nvml.nvmlDeviceGetHandleByUUID(name)
        except self._nvml.NVMLError:
            return self._find_abbreviated(name)

    def _find_abbreviated(self, name: str) -> Any:
        """CUDA takes the beginning of a UUID for the whole, where only one begins so; NVML does not."""
        nvml = self._nvml
        handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
        found = [handle for handle in handles if nvml.nvmlDeviceGetUUID(handle).startswith(name)]
        return found[0] if len(found) == 1 else None

    def read(self) -> worker_session_pb2.Telemetry | None:
        handle, nvml = self._handle, self._nvml
        if handle is None:
            return None
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle), None)
        name = self._ask(lambda: nvml.nvmlDeviceGetName(handle), "")
        if memory is None and not name:
            return None
        return worker_session_pb2.Telemetry(
            gpu_name=name,
            memory_used_bytes=int(memory.used) if memory is not None else 0,
            memory_total_bytes=int(memory.total) if memory is not None else 0,
            gpu_percent=self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu, 0),
            power_watts=self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(self._board) // 1_000, 0),
            temperature_c=self._ask(lambda: nvml.nvmlDeviceGetTemperature(self._board, nvml.NVML_TEMPERATURE_GPU), 0),
        )

    def _ask(self, question: Callable[[], Value], otherwise: Value) -> Value:
        """A field that this GPU does not have (utilisation of a MIG slice, say) leaves the others; a GPU that stops
        answering must not stop the worker."""
        try:
            return question()
        except self._nvml.NVMLError:
            return otherwise
