"""Both clients against a scripted service over real gRPC."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest

from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis.router.v1 import inference_service_pb2_grpc
from hyperflexis_client import (
    Aborted,
    Accepted,
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Delta,
    Finished,
    InternalError,
    InvalidRequest,
    ProtocolError,
    Refused,
    Result,
    RetryPolicy,
    Sampling,
    Unavailable,
)
from hyperflexis_client._details import STATUS_KEY, _message
from hyperflexis_client._tokens import pack
from hyperflexis_client.testing import Behaviour, FakeService, Fault, fake_tokens

PROMPT = [3, 1, 4]
COUNT = 9
QUICK = RetryPolicy(first_delay_s=0.001, max_delay_s=0.004, deadline_s=5.0)

Generate = Callable[..., Result]


def _sync(targets: str | Sequence[str], *, retry: RetryPolicy = QUICK, **options: Any) -> Result:
    with Client(targets, retry=retry) as client:
        return client.generate("fake", PROMPT, sampling=Sampling(max_tokens=COUNT), **options).result()


def _async(targets: str | Sequence[str], *, retry: RetryPolicy = QUICK, **options: Any) -> Result:
    async def run() -> Result:
        async with AsyncClient(targets, retry=retry) as client:
            return await client.generate("fake", PROMPT, sampling=Sampling(max_tokens=COUNT), **options).result()

    return asyncio.run(run())


@pytest.fixture(params=[_sync, _async], ids=["sync", "async"])
def generate(request: pytest.FixtureRequest) -> Generate:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService() as service:
        yield service


def whole(result: Result) -> bool:
    tokens = fake_tokens(PROMPT, COUNT)
    return result.token_ids == tokens and result.text == "".join(f"<{token}>" for token in tokens)


def test_a_break_at_every_point_loses_and_repeats_nothing(generate: Generate, service: FakeService) -> None:
    for first in (None, *range(COUNT + 1)):
        for second in (None, 0, 2):
            service.behaviour.faults[:] = [Fault.lost(first), Fault.lost(second)]
            assert whole(generate(service.target)), (first, second)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, None])
def test_whatever_ends_a_stream_before_its_end_is_a_loss(
    generate: Generate, service: FakeService, code: grpc.StatusCode | None
) -> None:
    service.behaviour.faults[:] = [Fault.lost(2, code), Fault.lost(COUNT - 2, code)]
    assert whole(generate(service.target))


def test_a_reset_reported_as_internal_is_resumed(generate: Generate, service: FakeService) -> None:
    service.behaviour.faults[:] = [Fault(4, grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2")]
    assert whole(generate(service.target))


def test_before_accepted_it_repeats_the_same_request(generate: Generate, service: FakeService) -> None:
    service.behaviour.faults[:] = [Fault.lost(None), Fault.lost(None)]
    assert whole(generate(service.target))
    keys = {call.idempotency_key for call in service.calls}
    assert [type(call) for call in service.calls] == [wire.GenerateRequest] * 3
    assert len(keys) == 1 and keys != {""}
    assert len(service.requests) == 1


def test_a_lost_router_is_replaced_by_the_next(generate: Generate, service: FakeService) -> None:
    with FakeService(requests=service.requests) as other:
        service.behaviour.faults[:] = [Fault.lost(5)]
        other.behaviour.faults[:] = []
        result = generate([service.target, other.target])
    assert whole(result)
    assert [type(call) for call in other.calls] == [wire.ResumeRequest]
    assert other.calls[0].next_index == 5


def test_a_dead_target_is_passed_over(generate: Generate, service: FakeService) -> None:
    with FakeService() as gone:
        pass
    assert whole(generate([gone.target, service.target]))


def test_a_request_known_to_one_router_only_is_found(generate: Generate, service: FakeService) -> None:
    with FakeService() as stranger:
        service.behaviour.faults[:] = [Fault.lost(5)]
        assert whole(generate([service.target, stranger.target]))


def test_a_request_lost_with_its_router_is_brought_along(generate: Generate, service: FakeService) -> None:
    with FakeService() as stranger:
        service.behaviour.faults[:] = [Fault.lost(5), Fault.lost(None, grpc.StatusCode.NOT_FOUND)]
        assert whole(generate([service.target, stranger.target]))
    carried = [call.HasField("original") for call in stranger.calls]
    assert carried == [False, True]


@pytest.mark.parametrize("by", [-1, 1])
def test_misnumbered_tokens_are_an_error(generate: Generate, service: FakeService, by: int) -> None:
    service.behaviour.faults[:] = [Fault.shifted(after=3, by=by)]
    with pytest.raises(ProtocolError, match="repeated" if by < 0 else "missing"):
        generate(service.target)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.ABORTED, Aborted),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.INTERNAL, InternalError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Refused),
    ],
)
@pytest.mark.parametrize("after", [None, 4])
def test_other_statuses_are_raised_at_once(
    generate: Generate, service: FakeService, code: grpc.StatusCode, error: type[Exception], after: int | None
) -> None:
    service.behaviour.faults[:] = [Fault.lost(after, code)]
    with pytest.raises(error, match="scripted"):
        generate(service.target)
    assert len(service.calls) == 1


def test_it_gives_up_when_nobody_answers(generate: Generate) -> None:
    with FakeService() as gone:
        pass
    with pytest.raises(Unavailable):
        generate(gone.target, retry=RetryPolicy(first_delay_s=0.01, max_delay_s=0.02, deadline_s=0.1))


def test_a_refusal_with_a_hint_is_repeated_after_it(generate: Generate, service: FakeService) -> None:
    retry = _message("RetryInfo")()
    retry.retry_delay.nanos = 50_000_000
    status = _message("Status")()
    status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=retry.SerializeToString())
    trailing = ((STATUS_KEY, status.SerializeToString()),)
    fault = Fault(None, grpc.StatusCode.RESOURCE_EXHAUSTED, "quota", trailing=trailing)
    service.behaviour.faults[:] = [fault]
    with pytest.raises(Refused) as refused:
        generate(service.target)
    assert refused.value.retry_after_s == pytest.approx(0.05)
    service.behaviour.faults[:] = [fault]
    began = time.monotonic()
    assert whole(generate(service.target, retry=RetryPolicy(retry_refused=True)))
    assert time.monotonic() - began >= 0.05


def test_the_time_given_bounds_the_whole_generation(generate: Generate) -> None:
    with FakeService(Behaviour(tpot_s=0.1)) as slow, pytest.raises(DeadlineExceeded):
        generate(slow.target, timeout_s=0.25)


def test_a_refused_generation_raises(generate: Generate) -> None:
    with FakeService(Behaviour(refuse_every=1)) as strict, pytest.raises(Refused):
        generate(strict.target)


def test_sync_events_come_in_order_and_the_view_follows(service: FakeService) -> None:
    service.behaviour.faults[:] = [Fault.lost(4)]
    with Client(service.target, retry=QUICK) as client:
        generation = client.generate("fake", PROMPT, sampling=Sampling(max_tokens=COUNT))
        kinds = [type(event) for event in generation]
        assert kinds == [Accepted, *[Delta] * COUNT, Finished]
        assert generation.reconnections == 1
        assert generation.next_index == COUNT
        assert generation.finished is not None and generation.accepted is not None


async def test_async_cancel_ends_the_request() -> None:
    with FakeService(Behaviour(tpot_s=0.01)) as service:
        async with AsyncClient(service.target) as client:
            generation = client.generate("fake", PROMPT, sampling=Sampling(max_tokens=1_000))
            async for _ in generation.deltas():
                break
            await generation.cancel()
        assert service.requests[generation.request_id].cancelled


async def test_cancelling_the_task_cancels_the_reading() -> None:
    with FakeService(Behaviour(tpot_s=0.05)) as service:
        async with AsyncClient(service.target) as client:
            generation = client.generate("fake", PROMPT, sampling=Sampling(max_tokens=1_000))
            task = asyncio.create_task(generation.result())
            await asyncio.sleep(0.15)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert generation.reconnections == 0


def test_closing_from_another_thread_ends_the_reading() -> None:
    with FakeService(Behaviour(tpot_s=0.02)) as service, Client(service.target) as client:
        generation = client.generate("fake", PROMPT, sampling=Sampling(max_tokens=1_000))
        threading.Timer(0.1, generation.close).start()
        with pytest.raises(Cancelled):
            generation.result()


def test_a_router_killed_and_restarted_at_the_same_address(generate: Generate) -> None:
    """A real loss of the connection, not a scripted status."""
    first = FakeService(Behaviour(tpot_s=0.02)).__enter__()
    restarted: list[FakeService] = []

    def replace() -> None:
        first.stop()
        address = f"127.0.0.1:{first.port}"
        restarted.append(FakeService(requests=first.requests, address=address).__enter__())

    timer = threading.Timer(0.06, replace)
    timer.start()
    try:
        assert whole(generate(first.target))
    finally:
        timer.join()
        restarted[0].stop()
    assert any(isinstance(call, wire.ResumeRequest) for call in restarted[0].calls)


class _StoppingRouter:
    """An asyncio router in the middle of a stream."""

    async def Generate(self, request: wire.GenerateRequest, context: Any) -> Any:
        yield wire.GenerateResponse(event=wire.StreamEvent(accepted=wire.Accepted(request_id="fake-00000000")))
        await asyncio.sleep(60)

    Resume = Cancel = ListModels = GetRequest = ListRequests = None


async def test_an_asyncio_router_that_shuts_down_is_a_loss_not_a_cancellation(service: FakeService) -> None:
    stopping = grpc.aio.server()
    router: Any = _StoppingRouter()
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(router, stopping)
    port = stopping.add_insecure_port("127.0.0.1:0")
    await stopping.start()
    service.admit(
        wire.GenerateRequest(token_ids=wire.TokenIds(packed=pack([1])), sampling=Sampling(max_tokens=4).proto())
    )
    async with AsyncClient([f"127.0.0.1:{port}", service.target], retry=QUICK) as client:
        generation = client.generate("fake", [1], sampling=Sampling(max_tokens=4))
        assert isinstance(await anext(generation), Accepted)
        await stopping.stop(0)
        assert (await generation.result()).token_ids == fake_tokens([1], 4)
