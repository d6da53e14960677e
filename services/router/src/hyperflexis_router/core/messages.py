"""What a request says to its scheduler, its worker and its client."""

from __future__ import annotations

from hyperflexis.common.v1 import slo_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.promise import too_late
from hyperflexis_router.core.submission import NewRequest


def submit(
    new: NewRequest, hashes: bytes, committed: int, resume: bool, last: Attempt | None, last_failed: bool, now_us: int
) -> router_session_pb2.RouterSessionRequest:
    message = router_session_pb2.Submit(
        request_id=new.request_id,
        model=new.model,
        tenant=new.tenant,
        prompt_tokens=new.prompt_tokens,
        max_tokens=new.max_tokens,
        prefix_hashes=hashes,
        slo=new.slo,
        age_us=max(0, now_us - new.received_us),
        detach_grace_us=new.detach_grace_us,
        resume=resume,
        committed_tokens=committed,
        last_attempt=last.proto() if last is not None else None,
        last_attempt_failed=last_failed,
        owner_gen=new.owner_gen,
    )
    return router_session_pb2.RouterSessionRequest(submit=message)


def start(new: NewRequest, attempt: Attempt, committed: bytes, now_us: int) -> token_feed_pb2.TokenFeedRequest:
    message = token_feed_pb2.Start(
        request_id=new.request_id,
        attempt=attempt.proto(),
        prompt=new.prompt,
        committed=committed,
        sampling=new.sampling,
        age_us=max(0, now_us - new.received_us),
        detach_grace_us=new.detach_grace_us,
        max_tokens=new.max_tokens,
    )
    return token_feed_pb2.TokenFeedRequest(start=message)


def subscribe(request_id: str, attempt: Attempt, next_index: int) -> token_feed_pb2.TokenFeedRequest:
    message = token_feed_pb2.Subscribe(request_id=request_id, attempt=attempt.proto(), next_index=next_index)
    return token_feed_pb2.TokenFeedRequest(subscribe=message)


def downgraded(promised: slo_pb2.Slo, message: router_session_pb2.Downgraded) -> inference_service_pb2.Notice:
    now = f"served as tier {message.slo.tier}"
    notice = _given_up(inference_service_pb2.Notice.KIND_DOWNGRADED, now, promised, message.decision)
    notice.slo.CopyFrom(message.slo)
    return notice


def best_effort(message: router_session_pb2.BestEffort) -> inference_service_pb2.Notice:
    now = "served after all that still have a promise"
    return _given_up(inference_service_pb2.Notice.KIND_BEST_EFFORT, now, message.slo, message.decision)


def _given_up(
    kind: inference_service_pb2.Notice.Kind.ValueType, now: str, promised: slo_pb2.Slo, decision: slo_pb2.Decision
) -> inference_service_pb2.Notice:
    predicted_us = int(decision.numbers.get("predicted_ttft_us", 0.0))
    message = f"{now}: the promise of {promised.tier} cannot be kept{too_late(predicted_us, promised)}"
    return inference_service_pb2.Notice(kind=kind, message=message, predicted_ttft_us=predicted_us)
