"""Requests that leave a router and come back to it, with Redis away in between, over real gRPC and Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
from router_rig import MakeRouter, collect, eventually, generate, read_until, reference, status_of, tokens_of

from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis_common.config import RedisSettings
from hyperflexis_common.tokens import pack, unpack


async def test_there_and_back_within_a_second(make_router: MakeRouter, cell: Any) -> None:
    """The first router has not heard yet that the second one took the request when its client comes back."""
    one, two = await make_router(), await make_router()
    cell.worker.pace_s = 0.02
    call = one.stub.Generate(generate(max_tokens=80, detach_grace_ms=30_000))
    events = await read_until(call, 5)
    call.cancel()
    request_id, have = events[0].accepted.request_id, tokens_of(events)
    for router, more in ((two, 5), (one, 5), (two, 75)):
        tail = pb.TokenIds(packed=pack(have))
        resume = pb.ResumeRequest(request_id=request_id, next_index=len(have), tail=tail, detach_grace_ms=30_000)
        call = router.stub.Resume(resume)
        have += tokens_of(await (read_until(call, more) if more < 75 else collect(call)))
        call.cancel()
    assert have == reference(80)


async def test_an_older_record_that_turns_up_does_not_end_a_request_begun_again(
    make_router: MakeRouter, cell: Any, redis_server: Any
) -> None:
    """Redis is away but keeps its data; the first router dies with it; the client brings its request to a second."""
    redis = RedisSettings(url=redis_server.url, timeout_ms=200)
    one, two = await make_router(redis=redis), await make_router(redis=redis)
    cell.worker.pace_s = 0.03
    request = generate(max_tokens=120, detach_grace_ms=30_000)
    call = one.stub.Generate(request)
    events = await read_until(call, 5)
    accepted, have = events[0].accepted, tokens_of(events)
    await asyncio.sleep(0.3)
    redis_server.pause()
    one.app.board.freeze()
    call.cancel()
    request.sampling.seed, request.sampling.max_tokens = accepted.seed, accepted.max_tokens
    resume = pb.ResumeRequest(
        request_id=accepted.request_id,
        next_index=len(have),
        tail=pb.TokenIds(packed=pack(have)),
        detach_grace_ms=30_000,
        original=request,
    )
    call = two.stub.Resume(resume)
    more = await read_until(call, 10)
    redis_server.resume()
    assert have + tokens_of(await collect(call, more)) == reference(120)
    await eventually(lambda: two.app.board.find(accepted.request_id).closed)
    record = await two.app.store.read(accepted.request_id)
    assert record is not None and record.finished is not None and unpack(record.journal) == reference(120)


async def away_and_back(make_router: MakeRouter, cell: Any, redis_server: Any) -> tuple[Any, Any, pb.ResumeRequest]:
    """Redis goes; the client goes on at a second router, and comes back to the first, which has heard nothing of it.
    Returns the second router, the first one, and what the client says to that."""
    redis = RedisSettings(url=redis_server.url, timeout_ms=200)
    one, two = await make_router(redis=redis), await make_router(redis=redis)
    cell.worker.pace_s = 0.03
    request = generate(max_tokens=120, detach_grace_ms=30_000)
    call = one.stub.Generate(request)
    events = await read_until(call, 5)
    accepted, have = events[0].accepted, tokens_of(events)
    redis_server.pause()
    call.cancel()
    request.sampling.seed, request.sampling.max_tokens = accepted.seed, accepted.max_tokens
    resume = pb.ResumeRequest(request_id=accepted.request_id, detach_grace_ms=30_000, original=request)
    resume.next_index, resume.tail.packed = len(have), pack(have)
    call = two.stub.Resume(resume)
    have += tokens_of(await read_until(call, 20))
    call.cancel()
    resume.next_index, resume.tail.packed = len(have), pack(have)
    assert one.app.board.find(accepted.request_id).available < len(have)
    return two, one, resume


async def test_the_clients_tail_fills_the_gap_of_a_router_that_still_holds_the_request(
    make_router: MakeRouter, cell: Any, redis_server: Any
) -> None:
    _, one, resume = await away_and_back(make_router, cell, redis_server)
    have = unpack(resume.tail.packed)
    resume.ClearField("original")
    resume.tail.packed = pack(have[3:])
    began = asyncio.get_running_loop().time()
    assert have + tokens_of(await read_until(call := one.stub.Resume(resume), 10)) == reference(120)[: len(have) + 10]
    assert asyncio.get_running_loop().time() - began < 1.5, "it asks its worker at once"
    call.cancel()
    redis_server.resume()


async def test_a_tail_that_does_not_reach_back_to_what_is_here_is_refused(
    make_router: MakeRouter, cell: Any, redis_server: Any
) -> None:
    _, one, resume = await away_and_back(make_router, cell, redis_server)
    resume.tail.packed = resume.tail.packed[-4:]
    error = await status_of(one.stub.Resume(resume))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and "up to index" in (error.details() or "")
    redis_server.resume()


async def test_the_clients_tokens_win_over_those_of_a_router_that_still_holds_the_request(
    make_router: MakeRouter, cell: Any
) -> None:
    router = await make_router()
    cell.worker.pace_s = 0.02
    call = router.stub.Generate(generate(max_tokens=60, detach_grace_ms=30_000))
    events = await read_until(call, 5)
    other = [(token + 1) % 1_000 for token in tokens_of(events)]
    resume = pb.ResumeRequest(request_id=events[0].accepted.request_id, next_index=len(other))
    resume.tail.packed = pack(other)
    more = tokens_of(await collect(router.stub.Resume(resume)))
    assert (await status_of(call)).code() == grpc.StatusCode.ABORTED
    assert router.app.in_flight.total == 0 and len(other) + len(more) == 60
    record = await router.app.store.read(resume.request_id)
    assert record is not None and unpack(record.journal)[: len(other)] == other


async def test_a_grace_that_ends_while_redis_is_away_does_not_end_a_request_begun_again(
    make_router: MakeRouter, cell: Any, redis_server: Any
) -> None:
    """The first router lives, and closes the record of its broken stream as cancelled: it cannot hear of the second."""
    redis = RedisSettings(url=redis_server.url, timeout_ms=200)
    one, two = await make_router(redis=redis), await make_router(redis=redis)
    cell.worker.pace_s = 0.03
    request = generate(max_tokens=120, detach_grace_ms=300)
    call = one.stub.Generate(request)
    events = await read_until(call, 5)
    accepted, have = events[0].accepted, tokens_of(events)
    await asyncio.sleep(0.3)
    redis_server.pause()
    call.cancel()
    request.sampling.seed, request.sampling.max_tokens = accepted.seed, accepted.max_tokens
    request.detach_grace_ms = 30_000
    resume = pb.ResumeRequest(
        request_id=accepted.request_id,
        next_index=len(have),
        tail=pb.TokenIds(packed=pack(have)),
        detach_grace_ms=30_000,
        original=request,
    )
    call = two.stub.Resume(resume)
    more = await read_until(call, 10)
    await eventually(lambda: one.app.board.find(accepted.request_id).finished is not None)
    redis_server.resume()
    assert have + tokens_of(await collect(call, more)) == reference(120)
    await eventually(lambda: two.app.board.find(accepted.request_id).closed)
    record = await two.app.store.read(accepted.request_id)
    assert record is not None and record.finished is not None and unpack(record.journal) == reference(120)


async def test_back_to_the_router_where_it_ended_for_want_of_its_client(
    make_router: MakeRouter, cell: Any, redis_server: Any
) -> None:
    """Redis is away all the time: the first router's grace ends, the second one goes on, and its client comes back."""
    redis = RedisSettings(url=redis_server.url, timeout_ms=200)
    one, two = await make_router(redis=redis), await make_router(redis=redis)
    cell.worker.pace_s = 0.03
    request = generate(max_tokens=120, detach_grace_ms=300)
    call = one.stub.Generate(request)
    events = await read_until(call, 5)
    accepted, have = events[0].accepted, tokens_of(events)
    await asyncio.sleep(0.3)
    redis_server.pause()
    call.cancel()
    request.sampling.seed, request.sampling.max_tokens = accepted.seed, accepted.max_tokens
    request.detach_grace_ms = 30_000

    def resume() -> pb.ResumeRequest:
        return pb.ResumeRequest(
            request_id=accepted.request_id,
            next_index=len(have),
            tail=pb.TokenIds(packed=pack(have)),
            detach_grace_ms=30_000,
            original=request,
        )

    call = two.stub.Resume(resume())
    have += tokens_of(await read_until(call, 10))
    ended = one.app.board.find(accepted.request_id)
    await eventually(lambda: ended.finished is not None)
    while len(have) <= ended.available:
        have += tokens_of(await read_until(call, 5))
    call.cancel()
    call = one.stub.Resume(resume())
    more = await read_until(call, 5)
    redis_server.resume()
    assert have + tokens_of(await collect(call, more)) == reference(120)
