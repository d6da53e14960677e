"""What the scripted service of `testing` is told and remembers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from hyperflexis.common.v1 import slo_pb2
from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis_client._tokens import pack

VOCAB_SIZE = 1_000


def fake_tokens(prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """The output of a prompt: each token depends on the prompt and its own index."""
    digest = zlib.crc32(pack(prompt))
    return tuple(zlib.crc32(index.to_bytes(4, "little"), digest) % VOCAB_SIZE for index in range(count))


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one stream; streams use up faults in order of their opening."""

    after: int | None = None
    """Tokens this stream sends first; None = it fails before Accepted."""
    code: grpc.StatusCode | None = grpc.StatusCode.UNAVAILABLE
    """Status the stream ends with; None = it ends OK, without Finished."""
    message: str = "scripted"
    shift: int = 0
    """Instead of ending: misnumber the tokens from there on by this much."""
    trailing: tuple[tuple[str, bytes], ...] = ()

    @classmethod
    def lost(cls, after: int | None, code: grpc.StatusCode | None = grpc.StatusCode.UNAVAILABLE) -> Fault:
        return cls(after=after, code=code)

    @classmethod
    def shifted(cls, after: int, by: int) -> Fault:
        return cls(after=after, shift=by)


@dataclass(slots=True)
class FakeRequest:
    """One request as the service holds it."""

    request_id: str
    message: wire.GenerateRequest
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    cancelled: bool = False
    finished: bool = False


@dataclass(slots=True)
class Behaviour:
    """How the service answers. Durations in seconds."""

    ttft_s: float = 0.0
    tpot_s: float = 0.0
    tokens_per_delta: int = 1
    tiers: tuple[slo_pb2.Slo, ...] = (
        slo_pb2.Slo(tier="chat", ttft_us=500_000, tpot_us=50_000, max_gap_us=250_000, weight=1.0),
        slo_pb2.Slo(tier="code", ttft_us=300_000, tpot_us=30_000, max_gap_us=250_000, weight=1.0),
    )
    refuse_every: int = 0
    """Each n-th request finishes as REFUSED; 0 = none."""
    context_length: int = 2_048
    faults: list[Fault] = field(default_factory=list)
    """Of the streams to come, in order."""
    unary_faults: list[Fault] = field(default_factory=list)
    """Of the ListModels calls to come."""
