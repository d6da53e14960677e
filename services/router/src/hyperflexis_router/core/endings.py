"""How requests end that the router did not end itself."""

from __future__ import annotations

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_router.core.effects import Ended

RETRY_AFTER_US = 1_000_000


def finished(request_id: str, finish: token_feed_pb2.AttemptFinished, output_tokens: int, attempts: int) -> Ended:
    """The worker came to the end of the output, or its engine failed on it."""
    stopped = finish.reason == sampling_pb2.FINISH_REASON_STOP_TOKEN
    failed = finish.reason == sampling_pb2.FINISH_REASON_ERROR
    return Ended(
        request_id,
        finish.reason,
        finish.message or ("the engine failed on this request" if failed else ""),
        stop_token_id=finish.stop_token_id if stopped else None,
        output_tokens=output_tokens,
        attempts=attempts,
    )


def refused(message: router_session_pb2.Refused, output_tokens: int, attempts: int) -> Ended:
    """The scheduler will not place it. Too many failed attempts are an error, a cancellation through another router is
    one: neither is a refusal."""
    reason: sampling_pb2.FinishReason.ValueType = sampling_pb2.FINISH_REASON_REFUSED
    if message.reason == router_session_pb2.REFUSAL_REASON_ATTEMPTS_EXHAUSTED:
        reason = sampling_pb2.FINISH_REASON_ERROR
    elif message.reason == router_session_pb2.REFUSAL_REASON_CANCELLED:
        reason = sampling_pb2.FINISH_REASON_CANCELLED
    return Ended(
        message.request_id,
        reason,
        message.message or router_session_pb2.RefusalReason.Name(message.reason),
        refusal=message.reason,
        retry_after_us=message.retry_after_us,
        predicted_ttft_us=message.predicted_ttft_us,
        output_tokens=output_tokens,
        attempts=attempts,
    )


def no_scheduler(request_id: str, waited_us: int, output_tokens: int, attempts: int) -> Ended:
    """Nobody could place it for too long."""
    return Ended(
        request_id,
        sampling_pb2.FINISH_REASON_REFUSED,
        f"no scheduler has led for {waited_us // 1_000_000} s",
        refusal=router_session_pb2.REFUSAL_REASON_NO_WORKER,
        retry_after_us=RETRY_AFTER_US,
        output_tokens=output_tokens,
        attempts=attempts,
    )
