"""What one engine step did, in the core's own words."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis_common.attempt import Attempt


@dataclass(slots=True)
class EngineEvent:
    """What one step did, as the engine tells it."""

    adds_applied: int = 0
    waiting: int = 0
    running: int = 0
    queued_prefill_tokens: int = 0
    decode_context_tokens: int = 0
    free_blocks: int = 0
    steps: int = 0
    tokens: list[tuple[str, Attempt, int, bytes]] = field(default_factory=list)
    """(request_id, attempt, start index, packed tokens)"""
    started: list[tuple[str, Attempt]] = field(default_factory=list)
    ended: list[tuple[str, Attempt, sampling_pb2.FinishReason.ValueType, int, str]] = field(default_factory=list)
    """(request_id, attempt, FinishReason, stop token id, message)"""
    given_up: list[tuple[str, Attempt, slo_pb2.Decision]] = field(default_factory=list)
