"""What a simulated worker tells the scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis_worker.steps.blocks import CacheEvents
from hyperflexis_worker.steps.queue_load import QueueLoad


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What a worker tells of itself: worker core's EngineLoad, and how its queue stands."""

    applied: int
    """Requests it had been sent when this was true."""
    waiting: int
    running: int
    queued: QueueLoad
    prefill_share: float
    context_tokens: float
    kv_used: float
    """Tokens."""
    cache: CacheEvents | None = None
    """Prefixes gained and lost since the report before."""
    pace: float = 1.0
    """Actual over predicted step time, as the worker measures it."""
