"""What a worker says of itself when it registers."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.common.v1 import capability_pb2
from hyperflexis_common.attempt import WorkerKey


@dataclass(frozen=True, slots=True)
class WorkerProfile:
    """What a worker says of itself; fixed for its life."""

    key: WorkerKey
    address: str
    model: str
    fingerprint: bytes
    capabilities: capability_pb2.EngineCapabilities
    total_blocks: int
    block_tokens: int
    block_bytes: int = 0
    """Of the cache, over all layers; 0 = not known."""
    eos_token_ids: frozenset[int] = frozenset()
    gpu_type: str = "cpu"
    tags: tuple[tuple[str, str], ...] = ()
    version: str = ""
    step_time: capability_pb2.StepTimeModel | None = None
    """Seed of the step-time model; reported until the worker has fitted its own."""
