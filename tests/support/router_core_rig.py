"""Messages for a router's core, with request r and workers A and B, and what its effects say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from hyperflexis.common.v1 import identity_pb2, sampling_pb2, slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as session_pb2
from hyperflexis.worker.v1 import token_feed_pb2 as feed_pb2
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.tokens import extend_crc, pack, unpack
from hyperflexis_router.core.effects import Committed, Effect, Ended, ToFeed, ToScheduler
from hyperflexis_router.core.submission import NewRequest, ResumedRequest

A, B, C = WorkerKey("a", 1), WorkerKey("b", 2), WorkerKey("c", 3)
SECOND = 1_000_000
OUTPUT = [10, 11, 12, 13, 14, 15]


def new_request(request_id: str = "r", max_tokens: int = 100) -> NewRequest:
    slo = slo_pb2.Slo(tier="chat", ttft_us=500_000, tpot_us=50_000)
    return NewRequest(request_id, "m", "t", pack([1, 2, 3]), sampling_pb2.SamplingParams(seed=1), max_tokens, slo, 0)


def resumed_request(committed: Sequence[int], max_tokens: int = 100) -> ResumedRequest:
    base = new_request(max_tokens=max_tokens)
    return ResumedRequest(
        base.request_id, "m", "t", base.prompt, base.sampling, max_tokens, base.slo, 0, 0, 7, pack(committed)
    )


def down(epoch: int = 1, **message: Any) -> session_pb2.RouterSessionResponse:
    return session_pb2.RouterSessionResponse(epoch=epoch, **message)


def placed(
    seq: int, worker: WorkerKey, base: int = 0, started: bool = False, epoch: int = 1, request_id: str = "r"
) -> session_pb2.RouterSessionResponse:
    attempt = identity_pb2.Attempt(leader_epoch=epoch, seq=seq)
    message = session_pb2.Placed(
        request_id=request_id, attempt=attempt, worker=worker.proto(), base_index=base, started=started
    )
    return down(epoch, placed=message)


def lost(seq: int, epoch: int = 1) -> session_pb2.RouterSessionResponse:
    attempt = identity_pb2.Attempt(leader_epoch=epoch, seq=seq)
    return down(epoch, lost=session_pb2.Lost(request_id="r", attempt=attempt))


def bind(slot: int, seq: int, request_id: str = "r", epoch: int = 1) -> feed_pb2.TokenFeedResponse:
    attempt = identity_pb2.Attempt(leader_epoch=epoch, seq=seq)
    return feed_pb2.TokenFeedResponse(bind=feed_pb2.Bind(slot=slot, request_id=request_id, attempt=attempt))


def step(slot: int, start: int, tokens: Sequence[int], prefix: Sequence[int] = OUTPUT) -> feed_pb2.TokenFeedResponse:
    crc = extend_crc(0, pack([*prefix[:start], *tokens]))
    message = feed_pb2.StepTokens(
        slots=pack([slot]), start_index=pack([start]), counts=pack([len(tokens)]), crc=pack([crc]), tokens=pack(tokens)
    )
    return feed_pb2.TokenFeedResponse(step=message)


def finish(
    slot: int, tokens: Sequence[int], reason: sampling_pb2.FinishReason.ValueType = sampling_pb2.FINISH_REASON_LENGTH
) -> feed_pb2.TokenFeedResponse:
    finished = feed_pb2.AttemptFinished(
        slot=slot, reason=reason, output_tokens=len(tokens), crc=extend_crc(0, pack(tokens))
    )
    return feed_pb2.TokenFeedResponse(step=feed_pb2.StepTokens(finished=[finished]))


def gone(seq: int) -> feed_pb2.TokenFeedResponse:
    attempt = identity_pb2.Attempt(leader_epoch=1, seq=seq)
    return feed_pb2.TokenFeedResponse(gone=feed_pb2.Gone(request_id="r", attempt=attempt))


def submits(effects: list[Effect]) -> list[session_pb2.Submit]:
    return [e.message.submit for e in effects if isinstance(e, ToScheduler) and e.message.HasField("submit")]


def to_feed(effects: list[Effect], kind: Literal["start", "subscribe", "closed"]) -> list[tuple[WorkerKey, object]]:
    return [(e.worker, getattr(e.message, kind)) for e in effects if isinstance(e, ToFeed) and e.message.HasField(kind)]


def committed(effects: list[Effect]) -> list[int]:
    return [token for e in effects if isinstance(e, Committed) for token in unpack(e.packed)]


def ended(effects: list[Effect]) -> list[Ended]:
    return [e for e in effects if isinstance(e, Ended)]
