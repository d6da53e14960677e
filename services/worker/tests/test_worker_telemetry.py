"""Telemetry, with an NVML that has more GPUs than torch is shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hyperflexis_worker.telemetry import GpuTelemetry


class FakeNvml:
    """Four GPUs, each with its index as its temperature; some have no meter for this or that."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, missing: str = "") -> None:
        self.missing = missing

    def nvmlInit(self) -> None:
        self._check("nvmlInit")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return int(uuid[-1])

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._check("memory")
        return SimpleNamespace(used=10, total=100)

    def nvmlDeviceGetName(self, handle: int) -> str:
        self._check("name")
        return "GPU"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        self._check("utilisation")
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 700_000

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:
        return handle

    def _check(self, what: str) -> None:
        if what in self.missing.split():
            raise self.NVMLError(what)


@pytest.mark.parametrize(
    ("device", "visible", "index"),
    [("cuda", None, 0), ("cuda:2", None, 2), ("cuda:0", "3", 3), ("cuda:1", "3, 1", 1), ("cuda", "GPU-abc-2", 2)],
)
def test_it_reads_the_gpu_that_torch_uses(device: str, visible: str | None, index: int) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    reading = GpuTelemetry(device, FakeNvml(), environment).read()
    assert reading is not None and reading.temperature_c == index
    assert (reading.gpu_name, reading.memory_total_bytes) == ("GPU", 100)
    assert (reading.gpu_percent, reading.power_watts) == (50, 700)


def test_a_missing_meter_leaves_the_others() -> None:
    reading = GpuTelemetry("cuda", FakeNvml(missing="utilisation"), {}).read()
    assert reading is not None and (reading.gpu_percent, reading.memory_used_bytes) == (0, 10)


def test_without_a_gpu_there_is_nothing() -> None:
    assert GpuTelemetry("cpu", FakeNvml(), {}).read() is None
    assert GpuTelemetry("cuda", FakeNvml(missing="nvmlInit"), {}).read() is None
    assert GpuTelemetry("cuda:1", FakeNvml(), {"CUDA_VISIBLE_DEVICES": "0"}).read() is None
    assert GpuTelemetry("cuda", FakeNvml(missing="memory name"), {}).read() is None
