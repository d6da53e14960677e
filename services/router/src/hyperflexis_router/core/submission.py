"""A validated request, as the core takes it."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis_common.tokens import count


@dataclass(frozen=True, slots=True)
class NewRequest:
    request_id: str
    model: str
    tenant: str
    prompt: bytes
    """Token ids, packed u32 LE."""
    sampling: sampling_pb2.SamplingParams
    """With its seed drawn."""
    max_tokens: int
    slo: slo_pb2.Slo
    received_us: int
    """When the full request was received, on this process's clock."""
    detach_grace_us: int = 0
    owner_gen: int = 0
    """Random per stream owner."""

    @property
    def prompt_tokens(self) -> int:
        return count(self.prompt)


@dataclass(frozen=True, slots=True)
class ResumedRequest(NewRequest):
    """One that another owner (or an earlier stream) began."""

    committed: bytes = b""
    """Its output tokens so far, packed u32 LE."""
