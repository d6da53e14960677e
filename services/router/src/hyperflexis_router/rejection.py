"""How a call is refused: a gRPC status with google.rpc details that clients can act on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from hyperflexis_router.core.validation import InvalidRequest
from hyperflexis_router.metrics import REJECTED

DETAILS_KEY = "grpc-status-details-bin"
Context = grpc.aio.ServicerContext[Any, Any]


class Rejected(Exception):
    """Ends the call with a status. Raised anywhere below a handler."""

    def __init__(self, code: grpc.StatusCode, message: str, details: Sequence[Message] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    @classmethod
    def invalid(cls, error: InvalidRequest) -> Rejected:
        bad = error_details_pb2.BadRequest()
        for field, message in error.violations:
            bad.field_violations.add(field=field, description=message)
        return cls(grpc.StatusCode[error.status], str(error), [bad])

    async def end(self, context: Context) -> NoReturn:
        REJECTED.labels(self.code.name).inc()
        trailing: tuple[tuple[str, bytes], ...] = ()
        if self.details:
            status = status_pb2.Status(code=code_pb2.Code.Value(self.code.name), message=self.message)
            for detail in self.details:
                packed = any_pb2.Any()
                packed.Pack(detail)
                status.details.append(packed)
            trailing = ((DETAILS_KEY, status.SerializeToString()),)
        await context.abort(self.code, self.message, trailing)
        raise AssertionError("abort raises")


def retry_after(delay_us: int) -> error_details_pb2.RetryInfo:
    delay = duration_pb2.Duration()
    delay.FromMicroseconds(delay_us)
    return error_details_pb2.RetryInfo(retry_delay=delay)


def quota(subject: str, message: str) -> error_details_pb2.QuotaFailure:
    failure = error_details_pb2.QuotaFailure()
    failure.violations.add(subject=subject, description=message)
    return failure


def not_found(request_id: str) -> Rejected:
    """For unknown requests and for those of other tenants alike: ids tell nothing."""
    return Rejected(grpc.StatusCode.NOT_FOUND, f"no request {request_id[:64]!r}; it may have ended long ago")
