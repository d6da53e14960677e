"""Unary calls, and what a Generate carries, over real gRPC."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis_client import AsyncClient, Client, HyperFlexisError, NotFound, RetryPolicy
from hyperflexis_client.testing import FakeService, Fault

PROMPT = [3, 1, 4]
QUICK = RetryPolicy(first_delay_s=0.001, max_delay_s=0.004, deadline_s=5.0)


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService() as service:
        yield service


def test_sync_unary_calls(service: FakeService) -> None:
    service.behaviour.unary_faults[:] = [Fault.lost(None)]
    with Client(service.target, retry=QUICK) as client:
        assert client.list_models().model("fake") is not None
        result = client.generate("fake", PROMPT).result()
        assert client.get_request(result.request_id).decisions[0].reason == "least_prefill"
        assert client.list_requests(5)[0].request_id == result.request_id
        assert client.server_info().service == "router"
        assert client.cancel(result.request_id) is False
        with pytest.raises(NotFound):
            client.get_request("nobody")
        resumed = client.resume(result.request_id, 3, result.token_ids[:3]).result()
        assert resumed.token_ids == result.token_ids[3:]


async def test_async_unary_calls(service: FakeService) -> None:
    service.behaviour.unary_faults[:] = [Fault.lost(None)]
    async with AsyncClient(service.target, retry=QUICK) as client:
        assert (await client.list_models()).default_tier == "chat"
        result = await client.generate("fake", PROMPT).result()
        assert (await client.get_request(result.request_id)).summary.worker_id == "w0"
        assert (await client.list_requests(5))[0].request_id == result.request_id
        assert (await client.server_info()).protocol_version == 1
        assert await client.cancel(result.request_id) is False
        resumed = await client.resume(result.request_id, 3, result.token_ids[:3]).result()
        assert resumed.token_ids == result.token_ids[3:]


def test_a_closed_client_says_so(service: FakeService) -> None:
    client = Client(service.target)
    client.close()
    with pytest.raises(HyperFlexisError, match="closed"):
        client.list_models()


def test_the_request_carries_what_was_asked(service: FakeService) -> None:
    with Client(service.target, api_key="k1") as client:
        client.generate(
            "fake", "hi", tier="code", ttft_ms=12.5, detach_grace_ms=0, idempotency_key="a", durable=True
        ).result()
    call = service.calls[0]
    assert (call.model, call.text, call.tier, call.ttft_us, call.tpot_us) == ("fake", "hi", "code", 12_500, 0)
    assert (call.detach_grace_ms, call.idempotency_key, call.durability) == (0, "a", wire.DURABILITY_STRICT)
    assert service.metadata[0]["authorization"] == "Bearer k1"
