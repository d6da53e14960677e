"""What can go wrong, one class per kind. All derive from HyperFlexisError."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc

from hyperflexis_client._details import STATUS_KEY, Details, Violation, read_details


class HyperFlexisError(Exception):
    """Base of every error of this package.

    `code` is the gRPC status (None where the client itself found the fault), `violations` say which fields
    or quotas were at fault, `retry_after_s` is the server's hint.
    """

    def __init__(self, message: str, code: grpc.StatusCode | None = None, details: Details | None = None) -> None:
        details = details or Details()
        self.message = message
        self.code = code
        self.violations: tuple[Violation, ...] = details.violations
        self.retry_after_s: float | None = details.retry_after_s
        super().__init__(message)

    def __str__(self) -> str:
        untold = [v for v in self.violations if v.description not in self.message]
        faults = "; ".join(f"{v.subject}: {v.description}" for v in untold)
        return f"{self.message} ({faults})" if faults else self.message


class InvalidRequest(HyperFlexisError):
    """The request can never succeed as it is; `violations` name the fields."""


class Unsupported(HyperFlexisError):
    """The service or its engine cannot do what was asked."""


class FailedPrecondition(HyperFlexisError):
    """Not possible in the present state; the message says what would be, such as where to resume from."""


class NotFound(HyperFlexisError):
    """No such request or model."""


class AlreadyExists(HyperFlexisError):
    """The idempotency key was used for a different request."""


class Unauthenticated(HyperFlexisError):
    """No API key, or an unknown one."""


class PermissionDenied(HyperFlexisError):
    """The API key may not do this."""


class Refused(HyperFlexisError):
    """Over a quota, or the tier's promise could not be kept; see `retry_after_s`."""


class Aborted(HyperFlexisError):
    """Another client resumed this request; its stream goes on there."""


class Cancelled(HyperFlexisError):
    """The call was cancelled."""


class DeadlineExceeded(HyperFlexisError):
    """The time given for the call is over."""


class Unavailable(HyperFlexisError):
    """No router could be reached, for as long as the client kept trying."""


class DataLoss(HyperFlexisError):
    """Tokens of the request are gone."""


class InternalError(HyperFlexisError):
    """A fault in the service, or a generation that ended in an error."""


class ProtocolError(HyperFlexisError):
    """The router broke the protocol: a token repeated or missing, an event out of order.

    `repeated` and `missing` count the tokens concerned, where it is about tokens.
    """

    def __init__(self, message: str, *, repeated: int = 0, missing: int = 0) -> None:
        super().__init__(message)
        self.repeated = repeated
        self.missing = missing


_BY_CODE: dict[grpc.StatusCode, type[HyperFlexisError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Refused,
    grpc.StatusCode.ABORTED: Aborted,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DATA_LOSS: DataLoss,
}

_RESET_PHRASES = ("rst_stream", "reset", "stream removed", "socket closed", "goaway", "connection", "broken pipe")
"""How gRPC words a lost connection where it does not say UNAVAILABLE."""


def error_of(
    code: grpc.StatusCode, message: str, trailing: Iterable[tuple[str, Any]] | None = None
) -> HyperFlexisError:
    """The typed error of a status; a connection reset reported as INTERNAL or UNKNOWN counts as UNAVAILABLE."""
    packed = next((value for key, value in trailing or () if key == STATUS_KEY), None)
    details = read_details(packed)
    if code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        lost = any(phrase in message.lower() for phrase in _RESET_PHRASES)
        return (Unavailable if lost else InternalError)(message, code, details)
    return _BY_CODE.get(code, InternalError)(message or code.name, code, details)
