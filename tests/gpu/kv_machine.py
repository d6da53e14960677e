"""Facts about the machine that a result is worth nothing without."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any


def _smi(*arguments: str) -> str:
    """What nvidia-smi says; empty where there is none."""
    try:
        asked = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.strip() if asked.returncode == 0 else ""


def gpus() -> list[str]:
    return _smi("--query-gpu=name", "--format=csv,noheader").splitlines()


def memory_used_mib(gpu: int) -> int | None:
    """By all processes. None where it cannot be told."""
    said = _smi("--query-gpu=memory.used", "--format=csv,noheader,nounits", f"--id={gpu}")
    return int(said) if said.isdigit() else None


def describe() -> dict[str, Any]:
    versions = {}
    for name in ("torch", "triton", "cuda-bindings", "numpy", "nixl-cu13", "protobuf"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "gpus": gpus(),
        "driver": (_smi("--query-gpu=driver_version", "--format=csv,noheader").splitlines() or [""])[0],
        "topology": _smi("topo", "-m").splitlines(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "packages": versions,
    }
