"""Client of HyperFlexis: LLM serving with a service-level objective on every request.

    async with AsyncClient("127.0.0.1:50051") as client:
        async for delta in client.generate("tiny", "Once upon a time", tier="chat").deltas():
            print(delta.text, end="", flush=True)

A stream survives the loss of its router: the client goes on at the next one, from the token it has reached.
"""

from hyperflexis_client._async_client import AsyncClient
from hyperflexis_client._async_generation import AsyncGeneration
from hyperflexis_client._calls import Prompt
from hyperflexis_client._details import Violation
from hyperflexis_client._errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    HyperFlexisError,
    InternalError,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Refused,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from hyperflexis_client._events import (
    Accepted,
    Delta,
    Event,
    Finished,
    FinishReason,
    Notice,
    NoticeKind,
    Result,
    Slo,
    TokenLogprobs,
    Verdict,
)
from hyperflexis_client._recovery import RetryPolicy
from hyperflexis_client._sampling import Sampling
from hyperflexis_client._sync_client import Client
from hyperflexis_client._sync_generation import Generation
from hyperflexis_client._views import (
    Decision,
    Measured,
    Model,
    Models,
    Pause,
    RequestDetails,
    RequestSummary,
    ServerInfo,
)

__all__ = [
    "Aborted",
    "Accepted",
    "AlreadyExists",
    "AsyncClient",
    "AsyncGeneration",
    "Cancelled",
    "Client",
    "DataLoss",
    "DeadlineExceeded",
    "Decision",
    "Delta",
    "Event",
    "FailedPrecondition",
    "FinishReason",
    "Finished",
    "Generation",
    "HyperFlexisError",
    "InternalError",
    "InvalidRequest",
    "Measured",
    "Model",
    "Models",
    "NotFound",
    "Notice",
    "NoticeKind",
    "Pause",
    "PermissionDenied",
    "Prompt",
    "ProtocolError",
    "Refused",
    "RequestDetails",
    "RequestSummary",
    "Result",
    "RetryPolicy",
    "Sampling",
    "ServerInfo",
    "Slo",
    "TokenLogprobs",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "Verdict",
    "Violation",
]
