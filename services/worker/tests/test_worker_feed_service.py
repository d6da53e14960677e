"""The token feed over gRPC: who is let in, who is not, and what becomes of a router that does not read."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from worker_process_rig import REFERENCE, FakeRouter, FakeScheduler, eventually

from hyperflexis.common.v1 import identity_pb2
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis.worker.v1 import worker_service_pb2_grpc
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.channel import open_channel
from hyperflexis_worker import service, shell
from hyperflexis_worker.app import Worker


async def refusal(worker: Worker, *messages: tf.TokenFeedRequest) -> grpc.aio.AioRpcError:
    async with open_channel(worker.address) as channel:
        call = worker_service_pb2_grpc.WorkerServiceStub(channel).TokenFeed()
        for message in messages:
            await call.write(message)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    return caught.value


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"protocol_version": 99}, f"this worker speaks protocol {PROTOCOL_VERSION}, the router 99"),
        ({"expected": identity_pb2.WorkerIdentity(worker_id="x", incarnation=1)}, "not the worker expected"),
    ],
)
async def test_a_feed_that_is_meant_for_another_is_refused(worker: Worker, fields: dict[str, Any], part: str) -> None:
    hello = tf.FeedHello(**{"router_id": "r", "protocol_version": PROTOCOL_VERSION, **fields})
    error = await refusal(worker, tf.TokenFeedRequest(hello=hello))
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert part in (error.details() or "")


async def test_a_feed_begins_with_hello(worker: Worker) -> None:
    error = await refusal(worker, tf.TokenFeedRequest(closed=tf.Closed(request_ids=["q"])))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_worker_that_is_meant_lets_in(worker: Worker) -> None:
    router = FakeRouter(worker.address)
    await router.open(expected=worker.key.proto())
    await router.close()


async def test_a_stream_that_says_nothing_is_ended(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FIRST_MESSAGE_S", 0.2)
    error = await refusal(worker)
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "FeedHello" in (error.details() or "")


async def test_a_router_that_does_not_read_is_cut_off_and_has_its_tokens_from_the_next_feed(
    scheduler: FakeScheduler, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "FEED_LIMIT", 100)
    slow = FakeRouter(worker.address)
    await slow.open()
    await scheduler.run("q", 1)
    await slow.start("q", 1)
    asked = 0
    while worker._shell._feeds and asked < 10_000:
        asked += 1
        await slow.subscribe("q", 1)  # is answered by all tokens so far: soon more than gRPC's own buffers hold
    assert 10 < asked < 10_000
    assert await slow.ended() == grpc.StatusCode.RESOURCE_EXHAUSTED
    again = FakeRouter(worker.address)
    await again.open()
    again.listen()
    await again.subscribe("q", 1)
    await eventually(lambda: again.tokens.get("q") == REFERENCE)
    assert scheduler.report_seqs == list(range(1, len(scheduler.report_seqs) + 1)), "in order, whatever was cut between"
    await slow.close()
    await again.close()


async def test_a_feed_that_was_cut_is_heard_no_more(
    scheduler: FakeScheduler, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its router may still write: nothing of that reaches the core, which has forgotten the feed."""
    monkeypatch.setattr(shell, "FEED_LIMIT", 0)
    slow = FakeRouter(worker.address)
    await slow.call.write(tf.TokenFeedRequest(hello=tf.FeedHello(router_id="r", protocol_version=PROTOCOL_VERSION)))
    assert await slow.ended() == grpc.StatusCode.RESOURCE_EXHAUSTED
    worker._shell.feed_message(1, tf.TokenFeedRequest(subscribe=tf.Subscribe(request_id="q")))
    await slow.close()
