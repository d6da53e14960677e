"""What a client can get wrong below the level of fields: bytes, half-closes, deadlines, keys used twice."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from router_rig import MakeRouter, collect, eventually, generate, read_until, reference, status_of, tokens_of

from hyperflexis.common.v1 import info_service_pb2, info_service_pb2_grpc, sampling_pb2
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.channel import open_channel

SERVICE = "/hyperflexis.router.v1.InferenceService/"


async def raw(address: str, method: str, bodies: list[bytes], streaming: bool = True) -> grpc.aio.AioRpcError:
    """A call whose messages are these bytes, half-closed after them."""
    async with open_channel(address) as channel:
        make = channel.stream_stream if streaming else channel.stream_unary
        call = make(SERVICE + method)(iter(bodies), timeout=8)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            if streaming:
                async for _ in call:
                    pass
            else:
                await call
    return caught.value


async def test_bytes_that_are_no_message_are_an_invalid_argument(make_router: MakeRouter) -> None:
    router = await make_router()
    latin = b"\x0a\x01m\x12\x02\xff\xfe"  # model "m", text that is not UTF-8
    for method, body, streaming in (
        ("Generate", latin, True),
        ("Generate", b"\x0a\xff", True),
        ("Cancel", b"\x0a\x02\xff\xfe", False),
    ):
        error = await raw(router.app.address, method, [body], streaming)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "UTF-8" in (error.details() or "")
        status = rpc_status.from_call(error)
        assert status is not None and status.details[0].Is(error_details_pb2.BadRequest.DESCRIPTOR)
    assert router.app.in_flight.total == 0


async def test_a_half_close_without_a_request_is_answered(make_router: MakeRouter) -> None:
    router = await make_router()
    for method, streaming in (("Generate", True), ("Resume", True), ("Cancel", False)):
        error = await raw(router.app.address, method, [], streaming)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT and "without a request" in (error.details() or "")


async def test_a_deadline_that_has_passed_leaves_nothing(make_router: MakeRouter) -> None:
    router = await make_router()
    error = await status_of(router.stub.Generate(generate(), timeout=0))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert router.app.in_flight.total == 0 and not list(router.app.board.live())


async def test_a_deadline_that_passes_ends_the_request_whatever_its_grace(make_router: MakeRouter, cell: Any) -> None:
    router = await make_router()
    cell.worker.pace_s = 0.02
    call = router.stub.Generate(generate(max_tokens=5_000, detach_grace_ms=60_000), timeout=0.4)
    error = await status_of(call)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: len(cell.worker.closed) == 1)


async def test_nan_is_refused_with_its_field(make_router: MakeRouter) -> None:
    router = await make_router()
    for field in ("temperature", "top_p", "frequency_penalty"):
        error = await status_of(
            router.stub.Generate(generate(sampling=sampling_pb2.SamplingParams(**{field: math.nan})))
        )
        status = rpc_status.from_call(error)
        bad = error_details_pb2.BadRequest()
        assert status is not None and status.details[0].Unpack(bad)
        assert bad.field_violations[0].field == f"sampling.{field}"


async def test_too_many_in_flight_says_when_to_come_back(make_router: MakeRouter, cell: Any) -> None:
    router = await make_router(max_in_flight_per_tenant=1)
    cell.worker.pace_s = 0.05
    call = router.stub.Generate(generate(max_tokens=1_000))
    await read_until(call, 1)
    error = await status_of(router.stub.Generate(generate()))
    status = rpc_status.from_call(error)
    failure, retry = error_details_pb2.QuotaFailure(), error_details_pb2.RetryInfo()
    assert status is not None and status.details[0].Unpack(failure) and status.details[1].Unpack(retry)
    assert failure.violations[0].subject == "tenant:default" and retry.retry_delay.seconds == 1
    call.cancel()


async def test_a_key_used_again_while_its_request_runs_joins_it(make_router: MakeRouter, cell: Any) -> None:
    one, two = await make_router(), await make_router()
    cell.worker.pace_s = 0.02
    first = one.stub.Generate(generate(max_tokens=60, idempotency_key="k", detach_grace_ms=30_000))
    request_id = (await read_until(first, 3))[0].accepted.request_id
    again = await collect(one.stub.Generate(generate(max_tokens=60, idempotency_key="k", detach_grace_ms=30_000)))
    assert again[0].accepted.request_id == request_id and tokens_of(again) == reference(60)
    assert (await status_of(first)).code() == grpc.StatusCode.ABORTED
    other = await collect(two.stub.Generate(generate(max_tokens=60, idempotency_key="k", detach_grace_ms=30_000)))
    assert other[0].accepted.request_id == request_id and tokens_of(other) == reference(60)
    error = await status_of(two.stub.Generate(generate(max_tokens=61, idempotency_key="k")))
    assert error.code() == grpc.StatusCode.ALREADY_EXISTS
    assert len({submit.request_id for submit in cell.scheduler.submits}) == 1


async def test_a_long_prompt_does_not_stop_the_others(make_router: MakeRouter) -> None:
    """Tokenization holds neither the event loop nor the interpreter."""
    router = await make_router()
    text = "once upon a time there was a king " * 20_000
    longest = last = 0.0
    refused = asyncio.create_task(status_of(router.stub.Generate(generate("text", text=text))))
    began = last = time.perf_counter()
    while not refused.done():
        await asyncio.sleep(0.002)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert (await refused).code() == grpc.StatusCode.INVALID_ARGUMENT
    assert longest < max(0.5 * (last - began), 0.2), f"the loop stood still for {longest:.2f} s of {last - began:.2f} s"


async def test_the_server_says_who_it_is(make_router: MakeRouter) -> None:
    router = await make_router()
    async with open_channel(router.app.address) as channel:
        stub = info_service_pb2_grpc.InfoServiceStub(channel)
        info = await stub.GetServerInfo(info_service_pb2.GetServerInfoRequest(), timeout=5)
    assert (info.service, info.instance_id, info.protocol_version) == ("router", router.app.router_id, PROTOCOL_VERSION)
    assert info.version.count(".") == 2 and info.uptime_us > 0
