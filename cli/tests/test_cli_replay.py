"""The replay against a scripted service over real gRPC."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis_cli.calibration import attainable_objectives, measure_capacity
from hyperflexis_cli.plan import Planned
from hyperflexis_cli.record import Record
from hyperflexis_cli.replay import Replay
from hyperflexis_cli.summary import summarise
from hyperflexis_client import AsyncClient, HyperFlexisError, Model, RetryPolicy
from hyperflexis_client.testing import Behaviour, FakeService, Fault

MODEL = Model("fake", 2_048, 1_000, 2, True)
QUICK = RetryPolicy(first_delay_s=0.001, max_delay_s=0.01, deadline_s=2.0)


def plan(count: int, *, every_s: float = 0.0, output: int = 6, tier: str = "chat") -> list[Planned]:
    return [Planned(index, index * every_s, 8, output, tier) for index in range(count)]


async def replayed(service: FakeService, planned: list[Planned], max_inflight: int = 100) -> list[Record]:
    async with AsyncClient(service.target, retry=QUICK) as client:
        return await Replay(client, planned, MODEL, max_inflight=max_inflight).run()


async def test_every_request_is_recorded_with_its_times() -> None:
    with FakeService(Behaviour(ttft_s=0.02, tpot_s=0.004)) as service:
        records = await replayed(service, plan(10, every_s=0.005))
    assert [record.planned.index for record in records] == list(range(10))
    for record in records:
        assert record.complete and record.lost_tokens == 0 and record.output_tokens == 6
        assert record.ttft_ms is not None and 15 < record.ttft_ms < 500
        assert record.tpot_ms is not None and 2 < record.tpot_ms < 100
        assert record.slo is not None and record.slo.tier == "chat"


async def test_prompts_repeat_with_their_seed() -> None:
    with FakeService() as service:
        await replayed(service, plan(3))
        await replayed(service, plan(3))
    prompts = [call.token_ids.packed for call in service.calls]
    assert sorted(prompts[:3]) == sorted(prompts[3:])
    assert len(set(prompts)) == 3
    assert all(call.sampling.ignore_eos and not call.return_text for call in service.calls)


async def test_arrivals_do_not_wait_for_earlier_requests() -> None:
    """Open loop: ten slow requests due within 50 ms are all open at once."""
    with FakeService(Behaviour(ttft_s=0.4)) as service:
        records = await replayed(service, plan(10, every_s=0.005))
    assert max(record.sent_s for record in records) < 0.35


async def test_who_waits_for_a_place_is_late() -> None:
    with FakeService(Behaviour(ttft_s=0.1)) as service:
        records = await replayed(service, plan(3), max_inflight=1)
    assert [record.late_s > 0.09 for record in records] == [False, True, True]


async def test_lost_streams_lose_no_token() -> None:
    with FakeService(faults=[Fault.lost(2), Fault.lost(None), Fault.lost(0), Fault.lost(5)]) as service:
        summary = summarise(await replayed(service, plan(8)), 1.0)
    assert (summary["finished"], summary["lost_tokens"], summary["repeated_tokens"]) == (8, 0, 0)
    assert summary["reconnections"] == 4


@pytest.mark.parametrize(("by", "lost", "repeated"), [(2, 2, 0), (-1, 0, 1)])
async def test_misnumbered_tokens_are_counted(by: int, lost: int, repeated: int) -> None:
    with FakeService(faults=[Fault.shifted(after=3, by=by)]) as service:
        summary = summarise(await replayed(service, plan(4)), 1.0)
    assert (summary["failed"], summary["lost_tokens"], summary["repeated_tokens"]) == (1, lost, repeated)


async def test_errors_and_refusals_are_counted_and_told() -> None:
    with FakeService(
        Behaviour(refuse_every=2), faults=[Fault(None, grpc.StatusCode.PERMISSION_DENIED, "not yours")]
    ) as service:
        summary = summarise(await replayed(service, plan(5)), 1.0)
    assert (summary["failed"], summary["refused"], summary["finished"]) == (1, 2, 2)
    assert summary["errors"] == ["PermissionDenied: not yours"]


async def test_cancelling_a_replay_ends_its_requests() -> None:
    with FakeService(Behaviour(tpot_s=0.05)) as service:
        async with AsyncClient(service.target) as client:
            replay = Replay(client, plan(3, output=1_000), MODEL)
            run = asyncio.create_task(replay.run())
            await asyncio.sleep(0.2)
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            assert replay.progress.running == 0


async def test_capacity_is_tokens_of_prompts_and_outputs() -> None:
    """Four at a time, 8 + 6 tokens each, 6 x 5 ms: some 1,900 tokens/s less overhead."""
    with FakeService(Behaviour(ttft_s=0.005, tpot_s=0.005)) as service:
        async with AsyncClient(service.target) as client:
            capacity = await measure_capacity(
                client, plan(5), MODEL, concurrency=4, seed=0, warm_up_s=0.3, window_s=1.0
            )
    assert 600 < capacity.tokens_per_s < 2_000
    assert capacity.requests_per_s == pytest.approx(capacity.tokens_per_s / 14)


async def test_a_calibration_without_tokens_says_why() -> None:
    with FakeService(faults=[Fault(None, grpc.StatusCode.INVALID_ARGUMENT, "no")] * 20_000) as service:
        async with AsyncClient(service.target) as client:
            with pytest.raises(HyperFlexisError, match="InvalidRequest: no"):
                await measure_capacity(client, plan(2), MODEL, concurrency=2, seed=0, warm_up_s=0.1, window_s=0.1)


async def test_objectives_are_loosened_to_what_the_machine_can_keep() -> None:
    """The code tier promises 300 ms / 30 ms; alone it takes some 100 ms / 10 ms: 6 and 5 times that is more."""
    with FakeService(Behaviour(ttft_s=0.1, tpot_s=0.01)) as service:
        async with AsyncClient(service.target) as client:
            tiers = (await client.list_models()).tiers
            planned = [*plan(2, tier="chat"), *plan(2, tier="code")]
            found = await attainable_objectives(client, planned, MODEL, tiers, seed=0)
            records = await Replay(client, planned, MODEL, objectives=found).run()
    assert found["chat"].ttft_ms is not None and 600 <= found["chat"].ttft_ms < 1_500
    assert found["code"].ttft_ms is not None and found["code"].ttft_ms > 600
    assert found["code"].tpot_ms is not None and found["code"].tpot_ms > 30
    sent = {call.tier: call.ttft_us for call in service.calls if isinstance(call, wire.GenerateRequest)}
    assert sent["chat"] == found["chat"].ttft_ms * 1_000
    assert all(record.complete for record in records)


async def test_objectives_that_can_be_kept_stay() -> None:
    with FakeService() as service:
        async with AsyncClient(service.target) as client:
            tiers = (await client.list_models()).tiers
            assert await attainable_objectives(client, plan(2), MODEL, tiers, seed=0) == {}
