"""Statuses become typed errors with their details."""

from __future__ import annotations

import grpc
import pytest

import hyperflexis_client
from hyperflexis_client import HyperFlexisError, InternalError, InvalidRequest, Refused, Sampling, Unavailable
from hyperflexis_client._calls import Options
from hyperflexis_client._details import STATUS_KEY, Violation, _message, read_details
from hyperflexis_client._errors import error_of


def packed_status(**details: object) -> bytes:
    status = _message("Status")(message="no")
    for name, message in details.items():
        status.details.add(type_url=f"type.googleapis.com/google.rpc.{name}", value=message.SerializeToString())  # type: ignore[attr-defined]
    return bytes(status.SerializeToString())


def test_details_agree_with_googles_own_messages() -> None:
    """Read by hand-declared messages what the real ones wrote."""
    error_details = pytest.importorskip("google.rpc.error_details_pb2")
    bad = error_details.BadRequest()
    bad.field_violations.add(field="sampling.top_p", description="must be in (0, 1]")
    quota = error_details.QuotaFailure()
    quota.violations.add(subject="tenant:a", description="100 requests/s")
    retry = error_details.RetryInfo()
    retry.retry_delay.FromTimedelta(__import__("datetime").timedelta(milliseconds=1_250))
    other = error_details.ErrorInfo(reason="X")
    read = read_details(packed_status(BadRequest=bad, QuotaFailure=quota, RetryInfo=retry, ErrorInfo=other))
    assert read.violations == (
        Violation("sampling.top_p", "must be in (0, 1]"),
        Violation("tenant:a", "100 requests/s"),
    )
    assert read.retry_after_s == 1.25


@pytest.mark.parametrize("packed", [None, b"", b"\xff\xff\xff"])
def test_unreadable_details_are_left_out(packed: bytes | None) -> None:
    assert read_details(packed).violations == ()


def test_the_message_shows_the_violations() -> None:
    bad = _message("BadRequest")()
    bad.field_violations.add(field="prompt", description="empty")
    error = error_of(grpc.StatusCode.INVALID_ARGUMENT, "bad request", [(STATUS_KEY, packed_status(BadRequest=bad))])
    assert isinstance(error, InvalidRequest)
    assert str(error) == "bad request (prompt: empty)"
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    telling = error_of(error.code, "prompt: empty", [(STATUS_KEY, packed_status(BadRequest=bad))])
    assert str(telling) == "prompt: empty"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_has_a_typed_error(code: grpc.StatusCode) -> None:
    error = error_of(code, "why")
    assert isinstance(error, HyperFlexisError)
    assert type(error) is not HyperFlexisError


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN])
def test_a_reset_is_a_lost_connection_and_a_bug_is_not(code: grpc.StatusCode) -> None:
    assert isinstance(error_of(code, "Received RST_STREAM with error code 2"), Unavailable)
    assert isinstance(error_of(code, "Stream removed"), Unavailable)
    assert isinstance(error_of(code, "Unexpected <class 'KeyError'>: 'x'"), InternalError)


def test_refused_has_no_hint_unless_the_server_gave_one() -> None:
    error = error_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota")
    assert isinstance(error, Refused)
    assert error.retry_after_s is None


def test_the_public_namespace_is_exactly_all() -> None:
    public = {name for name, value in vars(hyperflexis_client).items() if not name.startswith("_")}
    modules = {name for name in public if type(vars(hyperflexis_client)[name]).__name__ == "module"}
    assert public - modules == set(hyperflexis_client.__all__)
    assert sorted(hyperflexis_client.__all__, key=str) == sorted(set(hyperflexis_client.__all__))


def test_options_name_at_least_one_router_and_hide_the_key() -> None:
    for nothing in ("", [], [" "]):
        with pytest.raises(ValueError, match="host:port"):
            Options.of(nothing, None, None, None)
    assert "secret" not in repr(Options.of("a:1", "secret", None, None))


def test_sampling_keeps_unset_apart_from_zero() -> None:
    unset, zero = Sampling().proto(), Sampling(max_tokens=0, seed=0, logprobs=0, top_p=0.5).proto()
    assert not any(unset.HasField(name) for name in ("max_tokens", "seed", "logprobs", "top_p", "repetition_penalty"))
    assert all(zero.HasField(name) for name in ("max_tokens", "seed", "logprobs", "top_p"))
    assert Sampling(json_schema="{}").proto().response_format.json_schema == "{}"
