"""What one engine step did, in the core's own words."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import NamedTuple

from hyperflexis.common.v1 import capability_pb2, sampling_pb2, slo_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.steps.sampled import TokenLogprobs


class NewTokens(NamedTuple):
    """Output tokens [start_index, ...) of one attempt, packed."""

    request_id: str
    attempt: Attempt
    start_index: int
    packed: bytes
    logprobs: Rows[TokenLogprobs] = ()
    """Of each token, where the request asked for them; else empty."""


class EndedAttempt(NamedTuple):
    request_id: str
    attempt: Attempt
    reason: sampling_pb2.FinishReason.ValueType
    stop_token_id: int = 0
    message: str = ""
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache."""


@dataclass(slots=True)
class EngineEvent:
    """What one step did, as the engine tells it."""

    adds_applied: int = 0
    waiting: int = 0
    running: int = 0
    queued_prefill_tokens: int = 0
    queued_prefill_us: int = 0
    queued_before_us: Rows[int] = ()
    """What of it has its turn by each of TURNS_US; empty where the engine serves in another order."""
    prefill_share: float = 0.0
    pace: float = 0.0
    decode_context_tokens: int = 0
    free_blocks: int = 0
    leased_blocks: int = 0
    quarantined_blocks: int = 0
    reserved_blocks: int = 0
    steps: int = 0
    tokens: list[NewTokens] = field(default_factory=list)
    started: list[tuple[str, Attempt]] = field(default_factory=list)
    ended: list[EndedAttempt] = field(default_factory=list)
    cache: list[tuple[bool, bytes]] = field(default_factory=list)
    """(stored, hash): what the prefix cache stored and removed, oldest first."""
    cache_lost: bool = False
    """Some of it is missing."""
    step_time: capability_pb2.StepTimeModel | None = None
    """As fitted so far, now and then."""
    given_up: list[tuple[str, Attempt, slo_pb2.Decision]] = field(default_factory=list)
    preempted: list[tuple[str, Attempt, int]] = field(default_factory=list)
    """With the tokens that are to be computed again."""
