"""The router while Redis, its session or itself goes away."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from router_rig import MakeRouter, collect, eventually, generate, read_until, reference, status_of, tokens_of

from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis_common.config import RedisSettings
from hyperflexis_common.tokens import unpack


async def test_redis_away(make_router: MakeRouter, redis_server: Any) -> None:
    router = await make_router(redis=RedisSettings(url=redis_server.url, timeout_ms=200))
    redis_server.kill()
    events = await collect(router.stub.Generate(generate()))
    assert not events[0].accepted.durable and tokens_of(events) == reference(5)
    assert any(event.notice.kind == pb.Notice.KIND_NOT_DURABLE for event in events)
    error = await status_of(router.stub.Generate(generate(durability=pb.DURABILITY_STRICT)))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    redis_server.start()
    found = None
    async with asyncio.timeout(5):
        while found is None or found.finished is None:
            await asyncio.sleep(0.1)
            try:
                found = await router.app.store.read(events[0].accepted.request_id)
            except Exception:
                continue
    assert unpack(found.journal) == reference(5)


async def test_redis_restarts_empty_under_a_running_request(
    make_router: MakeRouter, cell: Any, redis_server: Any
) -> None:
    router = await make_router(redis=RedisSettings(url=redis_server.url, timeout_ms=200))
    cell.worker.pace_s = 0.02
    call = router.stub.Generate(generate(max_tokens=150))
    events = await read_until(call, 10)
    assert events[0].accepted.durable
    await asyncio.to_thread(redis_server.kill)
    await asyncio.to_thread(redis_server.start)
    assert tokens_of(await collect(call, events)) == reference(150)
    request_id = events[0].accepted.request_id
    await eventually(lambda: router.app.board.find(request_id).closed)
    record = await router.app.store.read(request_id)
    assert record is not None and record.finished == events[-1].finished
    assert unpack(record.journal) == reference(150)


async def test_a_stopping_router_leaves_its_requests_to_another(make_router: MakeRouter, cell: Any) -> None:
    one, two = await make_router(), await make_router()
    cell.worker.pace_s = 0.02
    call = one.stub.Generate(generate(max_tokens=60))
    events = await read_until(call, 3)
    stopping = asyncio.create_task(one.app.stop(0.1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(call, events)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE and "another router" in (caught.value.details() or "")
    await stopping
    have = tokens_of(events)
    resume = pb.ResumeRequest(request_id=events[0].accepted.request_id, next_index=len(have))
    assert have + tokens_of(await collect(two.stub.Resume(resume))) == reference(60)


async def test_a_session_that_breaks_is_not_noticed(make_router: MakeRouter, cell: Any) -> None:
    router = await make_router()
    cell.worker.pace_s = 0.02
    call = router.stub.Generate(generate(max_tokens=60))
    events = await read_until(call, 2)
    cell.scheduler.sessions[0].close()
    assert tokens_of(await collect(call, events)) == reference(60)
    assert [submit.resume for submit in cell.scheduler.submits] == [False, True]
