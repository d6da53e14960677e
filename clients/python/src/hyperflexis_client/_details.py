"""The google.rpc details of an error status, read without depending on googleapis-common-protos.

The three messages a router attaches are declared here field by field, in a descriptor pool of their own, so
that they cannot clash with the real ones where those are installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, duration_pb2, message_factory
from google.protobuf.message import DecodeError

STATUS_KEY = "grpc-status-details-bin"

_Field = descriptor_pb2.FieldDescriptorProto
_ANY = ".google.protobuf.Any"
_DURATION = ".google.protobuf.Duration"
_PACKAGE = "google.rpc"

_SCHEMA: dict[str, list[tuple[str, int, Any, bool]]] = {
    "Status": [("message", 2, str, False), ("details", 3, _ANY, True)],
    "FieldViolation": [("field", 1, str, False), ("description", 2, str, False)],
    "BadRequest": [("field_violations", 1, f".{_PACKAGE}.FieldViolation", True)],
    "RetryInfo": [("retry_delay", 1, _DURATION, False)],
    "QuotaViolation": [("subject", 1, str, False), ("description", 2, str, False)],
    "QuotaFailure": [("violations", 1, f".{_PACKAGE}.QuotaViolation", True)],
}
"""message -> (field, number, type, repeated); unknown fields are skipped by protobuf."""


@dataclass(frozen=True, slots=True)
class Violation:
    """What was wrong with one field of the request, or with one quota."""

    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class Details:
    violations: tuple[Violation, ...] = ()
    retry_after_s: float | None = None


@cache
def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{_PACKAGE}.{name}"))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(
        name="hyperflexis_client/details.proto", package=_PACKAGE, syntax="proto3"
    )
    for dependency in (any_pb2, duration_pb2):
        pool.AddSerializedFile(dependency.DESCRIPTOR.serialized_pb)
        file.dependency.append(dependency.DESCRIPTOR.name)
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            message.field.add(
                name=field,
                number=number,
                label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
                type=_Field.TYPE_STRING if kind is str else _Field.TYPE_MESSAGE,
                type_name=None if kind is str else kind,
            )
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def read_details(packed: bytes | None) -> Details:
    """Violations and retry hint from a `grpc-status-details-bin` value; what cannot be read is left out."""
    violations: list[Violation] = []
    retry_after_s: float | None = None
    try:
        for detail in _message("Status").FromString(packed or b"").details:
            name = detail.type_url.rpartition("/")[2]
            if name == f"{_PACKAGE}.BadRequest":
                parsed = _message("BadRequest").FromString(detail.value)
                violations += [Violation(v.field, v.description) for v in parsed.field_violations]
            elif name == f"{_PACKAGE}.QuotaFailure":
                parsed = _message("QuotaFailure").FromString(detail.value)
                violations += [Violation(v.subject, v.description) for v in parsed.violations]
            elif name == f"{_PACKAGE}.RetryInfo":
                delay = _message("RetryInfo").FromString(detail.value).retry_delay
                retry_after_s = delay.seconds + delay.nanos / 1e9
    except DecodeError:
        pass
    return Details(tuple(violations), retry_after_s)
