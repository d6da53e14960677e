"""What the core wants done. The shell (or a test's virtual network) carries effects out in order."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_router.core.logprobs import Logprobs


@dataclass(frozen=True, slots=True)
class ToScheduler:
    """Send on the open scheduler session."""

    message: router_session_pb2.RouterSessionRequest


@dataclass(frozen=True, slots=True)
class ToFeed:
    """Send on the open feed to `worker`."""

    worker: WorkerKey
    message: token_feed_pb2.TokenFeedRequest


@dataclass(frozen=True, slots=True)
class OpenFeed:
    """Dial this worker, and again whenever the feed breaks, until CloseFeed."""

    worker: WorkerKey
    address: str


@dataclass(frozen=True, slots=True)
class CloseFeed:
    worker: WorkerKey


@dataclass(frozen=True, slots=True)
class Committed:
    """Tokens newly part of the request's output, packed u32 LE; contiguous per request, never taken back."""

    request_id: str
    start_index: int
    packed: bytes
    logprobs: Logprobs = ()
    """One for each token, or empty."""


@dataclass(frozen=True, slots=True)
class Noticed:
    request_id: str
    notice: inference_service_pb2.Notice


@dataclass(frozen=True, slots=True)
class Ended:
    """The request is over. Exactly once per request, and its last effect but for messages to peers."""

    request_id: str
    reason: sampling_pb2.FinishReason.ValueType
    message: str = ""
    refusal: router_session_pb2.RefusalReason.ValueType = router_session_pb2.REFUSAL_REASON_UNSPECIFIED
    retry_after_us: int = 0
    """0 = retrying will not help."""
    predicted_ttft_us: int = 0
    stop_token_id: int | None = None
    output_tokens: int = 0
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class DropScheduler:
    """Close the scheduler session and look for the leader again."""

    reason: str


Effect = ToScheduler | ToFeed | OpenFeed | CloseFeed | Committed | Noticed | Ended | DropScheduler
