"""The scheduler over real gRPC and a real Redis, with a fake router and a fake worker as clients."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import grpc.aio
import pytest
import redis
from prometheus_client import generate_latest
from scheduler_rig import LEASE_MS, Cluster, Stream

from hyperflexis.common.v1 import identity_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as ss
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_scheduler import memory_keeper, service


@pytest.fixture
async def cluster(redis_server, request):
    cluster = Cluster(redis_server, f"{request.node.name}:")
    yield cluster
    await cluster.close()


async def test_a_request_is_placed_and_explained(cluster):
    app = await cluster.scheduler()
    worker, router = cluster.worker(app), cluster.router(app)
    await worker.register()
    await router.hello()
    welcome = await router.expect("welcome")
    assert welcome.fence.epoch == router.epoch == 1
    await router.submit("q1")
    run, placed = await worker.expect("run"), await router.expect("placed")
    assert run.attempt == placed.attempt and placed.worker.worker_id == "w1"
    explained = await cluster.stub(app).ExplainRequest(ss.ExplainRequestRequest(request_id="q1"))
    assert explained.decisions[-1].reason == "earliest_first_token"
    metrics = generate_latest(cluster.registry).decode()
    assert 'hyperflexis_scheduler_placements_total{reason="earliest_first_token"} 1.0' in metrics
    assert "hyperflexis_scheduler_leader 1.0" in metrics


async def test_a_standby_answers_not_leader_with_the_leaders_address(cluster):
    leader = await cluster.scheduler()
    standby = await cluster.scheduler(leads=False)
    await cluster.until(lambda: standby.leadership.leader_address() == leader.address, 3)
    router = cluster.router(standby)
    await router.hello()
    assert (await router.expect("not_leader")).leader_address == leader.address
    assert await router.ended() is grpc.StatusCode.OK
    reply = await cluster.stub(standby).GetLeader(ss.GetLeaderRequest())
    assert not reply.is_leader and reply.fence.epoch == 1
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await cluster.stub(standby).Apply(ss.ApplyRequest(action_id="a"))
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE and leader.address in error.value.details()


async def test_a_standby_takes_over_from_a_killed_leader_and_finds_its_attempts(cluster):
    leader = await cluster.scheduler()
    standby = await cluster.scheduler(leads=False)
    worker, router = cluster.worker(leader), cluster.router(leader)
    await worker.register()
    await router.hello()
    await router.submit("q1")
    run = await worker.expect("run")
    await asyncio.sleep(1.2)
    await cluster.kill(leader)
    took_s = await cluster.until(lambda: standby._core.cell is not None, 5)
    assert took_s < LEASE_MS / 1_000 + 3
    router = cluster.router(standby)
    await router.hello()
    assert (await router.expect("welcome")).fence.epoch == 2
    await router.submit("q1", resume=True, committed_tokens=3, last_attempt=run.attempt)
    assert (await router.expect("queued")).decision.reason == "new_leader"
    held = ws.RequestStatus(request_id="q1", attempt=run.attempt, phase=ws.REQUEST_PHASE_DECODE)
    worker = cluster.worker(standby)
    await worker.register(held)
    placed = await router.expect("placed")
    assert placed.attempt == run.attempt and placed.started


async def test_a_graceful_stop_hands_over_at_once(cluster):
    leader = await cluster.scheduler()
    standby = await cluster.scheduler(leads=False)
    router = cluster.router(leader)
    await router.hello()
    await router.expect("welcome")
    await cluster.stop(leader)
    assert await cluster.until(lambda: standby._core.cell is not None, 5) < LEASE_MS / 1_000
    with pytest.raises(AssertionError, match="stream ended"):
        await router.expect("placed")


async def test_redis_away_and_then_empty_changes_nothing(cluster):
    leader = await cluster.scheduler()
    standby = await cluster.scheduler(leads=False)
    worker, router = cluster.worker(leader), cluster.router(leader)
    await worker.register()
    await router.hello()
    cluster.redis.kill()
    await router.submit("q1")
    await router.expect("placed")
    await asyncio.sleep(2 * LEASE_MS / 1_000)
    cluster.redis.start()
    for _ in range(30):
        await asyncio.sleep(0.1)
        assert leader.leadership.election.epoch == 1 and not standby.leadership.election.leading
    await router.submit("q2")
    assert (await router.expect("placed")).attempt.leader_epoch == 1
    assert (await leader.leadership._lease.observe())[0].epoch == 1


async def test_a_leader_steps_down_when_a_worker_has_obeyed_a_higher_epoch(cluster):
    app = await cluster.scheduler()
    router = cluster.router(app)
    fence = identity_pb2.Fence(epoch=41)
    await router.send(hello=rs.RouterHello(router_id="r", incarnation=1, protocol_version=1, highest_fence=fence))
    await cluster.until(lambda: app.leadership.election.epoch == 42, 5)


async def test_apply_answers_with_the_right_status(cluster):
    app = await cluster.scheduler()
    stub, worker = cluster.stub(app), cluster.worker(app)
    await worker.register()
    drain = ws.Drain(reason="scale in")
    assert (await stub.Apply(ss.ApplyRequest(action_id="1", worker_id="w1", drain=drain))).applied
    assert (await worker.expect("drain")).reason == "scale in"
    assert not (await stub.Apply(ss.ApplyRequest(action_id="1", worker_id="w1", drain=drain))).applied
    cases = {
        grpc.StatusCode.NOT_FOUND: {"action_id": "2", "worker_id": "w9", "drain": drain},
        grpc.StatusCode.UNIMPLEMENTED: {"action_id": "3", "worker_id": "w1", "load_weights": ws.LoadWeights()},
        grpc.StatusCode.INVALID_ARGUMENT: {"worker_id": "w1", "drain": drain},
    }
    for code, fields in cases.items():
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Apply(ss.ApplyRequest(**fields))
        assert error.value.code() is code and error.value.details()


async def test_watchers_see_a_change_at_once(cluster):
    app = await cluster.scheduler()
    watch = cluster.stub(app).WatchCluster(ss.WatchClusterRequest())
    assert not (await watch.read()).workers
    worker = cluster.worker(app)
    await worker.register()
    async with asyncio.timeout(0.9):
        assert (await watch.read()).workers[0].identity.worker_id == "w1"
    watch.cancel()


def retired_in(cluster, app):
    with contextlib.closing(redis.Redis(port=cluster.redis.port)) as client:
        value = client.hget(f"{app._redis.prefix}workers", "w1")
    return value is not None and b'"retired": [1]' in value


async def test_retired_incarnations_survive_the_leader(cluster, monkeypatch):
    monkeypatch.setattr(memory_keeper, "PERIOD_S", 3_600)
    leader = await cluster.scheduler()
    for incarnation in (1, 2):
        await cluster.worker(leader).register(incarnation=incarnation)
    # Written at once, so that it need not live to its next second.
    await cluster.until(lambda: retired_in(cluster, leader), 5)
    await cluster.kill(leader)
    successor = await cluster.scheduler()
    old = cluster.worker(successor)
    with pytest.raises(AssertionError, match="stream ended"):
        await old.register(incarnation=1)
    await cluster.worker(successor).register(incarnation=2)


@pytest.mark.parametrize("method, greeting", [("RouterSession", "hello"), ("WorkerSession", "register")])
async def test_a_stream_that_says_nothing_is_ended(cluster, monkeypatch, method, greeting):
    monkeypatch.setattr(service, "FIRST_MESSAGE_S", 0.2)
    app = await cluster.scheduler()
    stream = Stream(app.address, method)
    cluster.streams.append(stream)
    assert await stream.ended() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert f"no {greeting} came" in await stream.call.details()


@pytest.mark.parametrize("method", ["RouterSession", "WorkerSession"])
async def test_a_stream_must_begin_with_its_greeting(cluster, method):
    app = await cluster.scheduler()
    stream = Stream(app.address, method)
    cluster.streams.append(stream)
    await stream.send(pong=rs.Pong())
    assert await stream.ended() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_redis_that_answers_with_errors_neither_ends_the_reign_nor_the_election(cluster, redis_server):
    leader = await cluster.scheduler()
    standby = await cluster.scheduler(leads=False)
    client = redis.Redis(port=redis_server.port)
    client.config_set("maxmemory", 1)
    try:
        await asyncio.sleep(2 * LEASE_MS / 1_000)
        assert leader.leadership.election.leading
    finally:
        client.config_set("maxmemory", 0)
    key = f"{leader._redis.prefix}leader"
    await cluster.until(lambda: client.pttl(key) > LEASE_MS / 2, 5)  # it renews again
    await cluster.kill(leader)
    await cluster.until(lambda: standby._core.cell is not None, 10)
    client.close()


async def test_a_record_that_cannot_be_read_does_not_keep_a_leader_from_leading(cluster, redis_server):
    first = await cluster.scheduler()
    worker = cluster.worker(first)
    await worker.register()
    prefix = first._redis.prefix
    client = redis.Redis(port=redis_server.port)
    await cluster.until(lambda: client.hlen(f"{prefix}workers") == 1, 5)
    later = 10**13
    client.hset(f"{prefix}workers", mapping={"other": f'{later} {{"v": 2}}', "old": "1 {}", "broken": "x"})
    await cluster.stop(first)
    second = await cluster.scheduler()
    assert second._core.cell.fleet.awaited == {"w1"}
    assert set(client.hkeys(f"{prefix}workers")) == {b"w1", b"other"}, "what has lapsed is cleared away"
    client.close()
