"""Telemetry, with an NVML that has more GPUs than torch is shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from hyperflexis_worker.telemetry import GpuTelemetry

UUIDS = {"GPU-aaaa0000": 0, "GPU-aaaa1111": 1, "GPU-bbbb2222": 2, "GPU-cccc3333": 3, "MIG-dddd": 40}
SLICE, ITS_GPU = 40, 3


class FakeNvml:
    """Four GPUs, each with its index as its temperature, and a slice of the last; some have no meter for something."""

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
        if uuid not in UUIDS:
            raise self.NVMLError("not found")
        return UUIDS[uuid]

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return next(uuid for uuid, known in UUIDS.items() if known == handle)

    def nvmlDeviceGetCount(self) -> int:
        return 4

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: int) -> int:
        if handle != SLICE:
            raise self.NVMLError("no slice")
        return ITS_GPU

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        self._check("memory")
        return SimpleNamespace(used=10, total=100)

    def nvmlDeviceGetName(self, handle: int) -> str:
        self._check("name")
        return "GPU"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        self._check("utilisation")
        if handle == SLICE:
            raise self.NVMLError("not supported")
        return SimpleNamespace(gpu=50)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return 700_000

    def nvmlDeviceGetTemperature(self, handle: int, kind: int) -> int:
        if handle == SLICE:
            raise self.NVMLError("not supported")
        return handle

    def _check(self, what: str) -> None:
        if what in self.missing.split():
            raise self.NVMLError(what)


@pytest.mark.parametrize(
    ("device", "visible", "index"),
    [
        ("cuda", None, 0),
        ("cuda:2", None, 2),
        ("cuda:0", "3", 3),
        ("cuda:1", "3, 1", 1),
        ("cuda", "GPU-bbbb2222", 2),
        ("cuda:1", "0,GPU-bbbb", 2),
    ],
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
    assert GpuTelemetry("cuda", FakeNvml(missing="memory name"), {}).read() is None


@pytest.mark.parametrize(("device", "visible"), [("cuda:1", "0"), ("cuda", ""), ("cuda", "-1"), ("cuda:1", "0,-1,1")])
def test_a_gpu_that_is_hidden_is_none(device: str, visible: str) -> None:
    assert GpuTelemetry(device, FakeNvml(), {"CUDA_VISIBLE_DEVICES": visible}).read() is None


@pytest.mark.parametrize("visible", ["GPU-aaaa", "GPU-eeee", "MIG-eeee"])
def test_a_uuid_that_names_no_one_gpu_is_none(visible: str) -> None:
    assert GpuTelemetry("cuda", FakeNvml(), {"CUDA_VISIBLE_DEVICES": visible}).read() is None


def test_a_slice_has_its_own_memory_and_the_temperature_of_its_gpu() -> None:
    reading = GpuTelemetry("cuda", FakeNvml(), {"CUDA_VISIBLE_DEVICES": "MIG-dddd"}).read()
    assert reading is not None and (reading.memory_used_bytes, reading.gpu_percent) == (10, 0)
    assert (reading.power_watts, reading.temperature_c) == (700, ITS_GPU)


def test_the_fake_has_no_call_that_the_real_one_lacks() -> None:
    assert not [name for name in dir(FakeNvml) if name[:4] in ("nvml", "NVML") and not hasattr(pynvml, name)]
