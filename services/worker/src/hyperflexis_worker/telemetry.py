"""What the GPU says of itself, through NVML; nothing where there is no GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pynvml  # type: ignore[import-untyped]

from hyperflexis.scheduler.v1 import worker_session_pb2


class GpuTelemetry:
    """Reads one GPU. `read()` gives None where NVML or the GPU is missing."""

    def __init__(self, device: str) -> None:
        self._handle = None
        if device.startswith("cuda"):
            index = int(device.partition(":")[2] or 0)
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)

    def read(self) -> worker_session_pb2.Telemetry | None:
        if self._handle is None:
            return None
        with _nvml():
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
            return worker_session_pb2.Telemetry(
                gpu_name=pynvml.nvmlDeviceGetName(self._handle),
                memory_used_bytes=int(memory.used),
                memory_total_bytes=int(memory.total),
                gpu_percent=pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu,
                power_watts=pynvml.nvmlDeviceGetPowerUsage(self._handle) // 1_000,
                temperature_c=pynvml.nvmlDeviceGetTemperature(self._handle, pynvml.NVML_TEMPERATURE_GPU),
            )
        return None


@contextlib.contextmanager
def _nvml() -> Iterator[None]:
    """A GPU that stops answering must not stop the worker."""
    with contextlib.suppress(pynvml.NVMLError):
        yield
