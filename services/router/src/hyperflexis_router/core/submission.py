"""A validated request, as the core takes it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis_common.tokens import TOKEN_BYTES, count

PREFIX_HASH_BYTES = 16


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


def prefix_hashes(prompt: bytes, block_tokens: int) -> bytes:
    """Chained hashes of the prompt's full blocks, 16 bytes each; empty where blocks have no size.

    Hash i = BLAKE2b-128(hash i-1 + packed block i), so equal hashes mean equal prefixes.
    """
    if block_tokens <= 0:
        return b""
    size = block_tokens * TOKEN_BYTES
    hashes = []
    previous = b""
    for start in range(0, len(prompt) - size + 1, size):
        previous = hashlib.blake2b(previous + prompt[start : start + size], digest_size=PREFIX_HASH_BYTES).digest()
        hashes.append(previous)
    return b"".join(hashes)
