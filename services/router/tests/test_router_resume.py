"""Streams that break and come back, over real gRPC and Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from router_rig import MakeRouter, collect, eventually, generate, read_until, reference, status_of, tokens_of

from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis_common.tokens import pack
from hyperflexis_router.app import key_hash
from hyperflexis_router.config import ApiKeySettings


async def test_a_lost_stream_cancels_or_detaches(make_router: MakeRouter, cell: Any) -> None:
    router = await make_router()
    cell.worker.pace_s = 0.01
    call = router.stub.Generate(generate(max_tokens=5_000))
    first = (await read_until(call, 1))[0].accepted.request_id
    call.cancel()
    await eventually(lambda: first in cell.worker.closed)

    call = router.stub.Generate(generate(max_tokens=60, detach_grace_ms=30_000))
    events = await read_until(call, 5)
    second = events[0].accepted.request_id
    call.cancel()
    await eventually(lambda: router.app.board.find(second).client is None)
    have = len(tokens_of(events))
    more = await collect(router.stub.Resume(pb.ResumeRequest(request_id=second, next_index=have)))
    assert more[0].accepted.next_index == have
    assert tokens_of(events) + tokens_of(more) == reference(60)


async def test_the_detach_grace_ends(make_router: MakeRouter, cell: Any) -> None:
    router = await make_router()
    cell.worker.pace_s = 0.01
    call = router.stub.Generate(generate(max_tokens=5_000, detach_grace_ms=300))
    request_id = (await read_until(call, 1))[0].accepted.request_id
    call.cancel()
    await eventually(lambda: request_id in cell.worker.closed)


async def test_resume_on_another_router(make_router: MakeRouter, cell: Any) -> None:
    one, two = await make_router(), await make_router()
    cell.worker.pace_s = 0.02
    call = one.stub.Generate(generate(max_tokens=100, detach_grace_ms=30_000))
    events = await read_until(call, 5)
    have = tokens_of(events)
    request = pb.ResumeRequest(
        request_id=events[0].accepted.request_id, next_index=len(have), tail=pb.TokenIds(packed=pack(have))
    )
    more = await collect(two.stub.Resume(request))
    assert have + tokens_of(more) == reference(100)
    error = await status_of(call)
    assert error.code() == grpc.StatusCode.ABORTED and "another router" in (error.details() or "")
    assert one.app.in_flight.total == two.app.in_flight.total == 0
    assert cell.scheduler.cancelled == []


async def test_resume_with_the_request_itself_where_no_record_is_left(make_router: MakeRouter, cell: Any) -> None:
    """Redis has lost the record and the owner is gone: what the client holds is enough."""
    one, two = await make_router(), await make_router()
    cell.worker.pace_s = 0.02
    request = generate(max_tokens=60, detach_grace_ms=30_000)
    call = one.stub.Generate(request)
    events = await read_until(call, 5)
    have, accepted = tokens_of(events), events[0].accepted
    await one.app.stop(0)
    request.sampling.seed, request.sampling.max_tokens = accepted.seed, accepted.max_tokens
    resume = pb.ResumeRequest(
        request_id=accepted.request_id, next_index=len(have), tail=pb.TokenIds(packed=pack(have)), original=request
    )
    await two.app._access.client.flushdb()
    assert have + tokens_of(await collect(two.stub.Resume(resume))) == reference(60)


@pytest.mark.parametrize(
    ("change", "status", "part"),
    [
        (lambda r: r.ClearField("original"), grpc.StatusCode.NOT_FOUND, "no request"),
        (lambda r: r.original.sampling.ClearField("seed"), grpc.StatusCode.INVALID_ARGUMENT, "seed"),
        (lambda r: setattr(r.tail, "packed", pack([1])), grpc.StatusCode.FAILED_PRECONDITION, "all 2 tokens"),
        (lambda r: setattr(r.tail, "packed", pack([1, 5_000])), grpc.StatusCode.INVALID_ARGUMENT, "vocabulary of 1000"),
        (lambda r: setattr(r, "request_id", "mine"), grpc.StatusCode.INVALID_ARGUMENT, "request_id"),
        (lambda r: setattr(r.original, "model", "none"), grpc.StatusCode.NOT_FOUND, "none"),
    ],
)
async def test_resume_with_a_request_that_cannot_serve(
    make_router: MakeRouter, change: Callable[[pb.ResumeRequest], None], status: grpc.StatusCode, part: str
) -> None:
    router = await make_router()
    original = generate(max_tokens=10)
    original.sampling.seed = 1
    request = pb.ResumeRequest(
        request_id="ab" * 16, next_index=2, tail=pb.TokenIds(packed=pack([1, 2])), original=original
    )
    change(request)
    error = await status_of(router.stub.Resume(request))
    assert error.code() == status and part in (error.details() or "")
    assert router.app.in_flight.total == 0


async def test_another_tenants_record_is_not_resumed_with_a_request(make_router: MakeRouter, cell: Any) -> None:
    keys = [ApiKeySettings(key_sha256=key_hash(name), tenant=name) for name in ("owner", "thief")]
    one, two = await make_router(api_keys=keys), await make_router(api_keys=keys)
    cell.worker.pace_s = 0.02
    request = generate(max_tokens=60)
    call = one.stub.Generate(request, metadata=(("authorization", "Bearer owner"),))
    accepted = (await read_until(call, 1))[0].accepted
    request.sampling.seed = accepted.seed
    resume = pb.ResumeRequest(request_id=accepted.request_id, original=request)
    for router in (one, two):
        error = await status_of(router.stub.Resume(resume, metadata=(("authorization", "Bearer thief"),)))
        assert error.code() == grpc.StatusCode.NOT_FOUND
    call.cancel()


async def test_resume_asks_for_what_is_known(make_router: MakeRouter, cell: Any) -> None:
    one, two = await make_router(), await make_router()
    cell.worker.pace_s = 0.05
    call = one.stub.Generate(generate(max_tokens=1_000, detach_grace_ms=30_000))
    request_id = (await read_until(call, 2))[0].accepted.request_id
    for router in (one, two):
        error = await status_of(router.stub.Resume(pb.ResumeRequest(request_id=request_id, next_index=900)))
        assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and "up to index" in (error.details() or "")
    error = await status_of(two.stub.Resume(pb.ResumeRequest(request_id="0" * 32)))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    call.cancel()


async def test_a_newer_stream_aborts_the_older(make_router: MakeRouter, cell: Any) -> None:
    router = await make_router()
    cell.worker.pace_s = 0.02
    call = router.stub.Generate(generate(max_tokens=50))
    request_id = (await read_until(call, 1))[0].accepted.request_id
    newer = asyncio.create_task(collect(router.stub.Resume(pb.ResumeRequest(request_id=request_id))))
    assert (await status_of(call)).code() == grpc.StatusCode.ABORTED
    assert tokens_of(await newer) == reference(50)


async def test_an_idempotent_retry_is_the_same_request(make_router: MakeRouter, cell: Any) -> None:
    one, two = await make_router(), await make_router()
    first = await collect(one.stub.Generate(generate(idempotency_key="k")))
    await eventually(lambda: one.app.board.find(first[0].accepted.request_id).closed)
    for router in (one, two):
        again = await collect(router.stub.Generate(generate(idempotency_key="k")))
        assert again[0].accepted.request_id == first[0].accepted.request_id
        assert tokens_of(again) == reference(5) and again[-1].finished == first[-1].finished
        error = await status_of(router.stub.Generate(generate(idempotency_key="k", max_tokens=6)))
        assert error.code() == grpc.StatusCode.ALREADY_EXISTS
    assert len(cell.scheduler.placed) == 1


async def test_an_idempotent_retry_takes_the_request_from_a_dead_router(make_router: MakeRouter, cell: Any) -> None:
    one, two = await make_router(), await make_router()
    cell.worker.pace_s = 0.02
    request = generate(max_tokens=60, detach_grace_ms=30_000, idempotency_key="k")
    call = one.stub.Generate(request)
    accepted = (await read_until(call, 5))[0].accepted
    one.app.board.freeze()
    call.cancel()
    again = await collect(two.stub.Generate(request))
    assert again[0].accepted.request_id == accepted.request_id and tokens_of(again) == reference(60)
    assert cell.scheduler.submits[-1].resume and cell.scheduler.cancelled == []
