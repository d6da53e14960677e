"""ScalerService and the watched cluster, over gRPC, with a fake scheduler and real processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from hyperflexis.scaler.v1 import scaler_service_pb2 as sp
from hyperflexis.scaler.v1 import scaler_service_pb2_grpc
from hyperflexis_common.channel import open_channel

from .conftest import RedisServer, ScalerProcess, processes_of
from .fake_scheduler import FakeScheduler

Scalers = Callable[..., ScalerProcess]
Stub: TypeAlias = "scaler_service_pb2_grpc.ScalerServiceAsyncStub"


@asynccontextmanager
async def client(address: str) -> AsyncIterator[Stub]:
    async with open_channel(address) as channel:
        stub: Stub = scaler_service_pb2_grpc.ScalerServiceStub(channel)
        yield stub


async def fleet_until(stub: Stub, condition: Callable[[sp.GetFleetResponse], bool]) -> sp.GetFleetResponse:
    deadline = time.monotonic() + 15
    while True:
        fleet: sp.GetFleetResponse = await stub.GetFleet(sp.GetFleetRequest(), timeout=2)
        if condition(fleet):
            return fleet
        assert time.monotonic() < deadline, fleet
        await asyncio.sleep(0.05)


def recorded(state_dir: Path) -> list[str]:
    return [path.stem for path in state_dir.glob("*.json")]


async def refusal(stub: Stub, group: str, target: int) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.SetTarget(sp.SetTargetRequest(group=group, target=target), timeout=2)
    return caught.value


async def test_the_fleet_is_shown_and_its_target_set(scaler: Scalers, state_dir: Path) -> None:
    scheduler = await FakeScheduler(lambda: recorded(state_dir)).start()
    async with client(scaler(schedulers=[scheduler.address]).start().address) as stub:
        fleet = await fleet_until(stub, lambda fleet: fleet.groups[0].ready == 2)
        assert fleet.is_leader and fleet.fence.epoch == 1
        (group,) = fleet.groups
        assert (group.name, group.model, group.target, group.max) == ("chat", "llama", 2, 2)
        assert {i.instance_id for i in fleet.instances} == set(recorded(state_dir))
        assert [a.kind for a in fleet.recent_actions] == ["start", "start"]

        answer = await stub.SetTarget(sp.SetTargetRequest(group="chat", target=1), timeout=2)
        assert answer.group.target == 1
        fleet = await fleet_until(stub, lambda fleet: len(fleet.instances) == 1)
        assert [request.worker_id for request in scheduler.applied] == [
            a.instance_id for a in fleet.recent_actions if a.kind == "drain"
        ]
        assert scheduler.applied[0].scaler_fence == fleet.fence
        assert len(processes_of(state_dir)) == 1
    await scheduler.stop()


async def test_refusals_say_what_to_do(scaler: Scalers) -> None:
    async with client(scaler().start().address) as stub:
        await fleet_until(stub, lambda fleet: fleet.is_leader)
        error = await refusal(stub, "nope", 1)
        assert error.code() is grpc.StatusCode.NOT_FOUND and "groups: chat" in (error.details() or "")
        error = await refusal(stub, "chat", 3)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailer = dict(error.trailing_metadata())["grpc-status-details-bin"]
        failure = error_details_pb2.QuotaFailure()
        assert status_pb2.Status.FromString(trailer).details[0].Unpack(failure)
        assert failure.violations[0].subject == "group:chat"


async def test_a_standby_reads_but_does_not_set(scaler: Scalers) -> None:
    leader = scaler(listen="127.0.0.1:0").start()
    async with client(leader.address) as stub:
        await fleet_until(stub, lambda fleet: fleet.is_leader and len(fleet.instances) == 2)
    async with client(scaler().start().address) as stub:
        fleet = await fleet_until(stub, lambda fleet: len(fleet.instances) == 2)
        assert not fleet.is_leader
        deadline = time.monotonic() + 15
        while leader.address not in ((error := await refusal(stub, "chat", 1)).details() or ""):
            # Until it has tried for the lease once it knows no leader, and says so.
            assert "no leader is known, try again" in (error.details() or "") and time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_target_outlives_the_scaler_until_another_is_configured(scaler: Scalers) -> None:
    first = scaler().start()
    async with client(first.address) as stub:
        await fleet_until(stub, lambda fleet: fleet.is_leader)
        await stub.SetTarget(sp.SetTargetRequest(group="chat", target=0), timeout=2)
    first.end()
    second = scaler().start()
    async with client(second.address) as stub:
        assert (await fleet_until(stub, lambda fleet: fleet.is_leader)).groups[0].target == 0
    second.end()
    async with client(scaler({"target": 1}).start().address) as stub:
        assert (await fleet_until(stub, lambda fleet: fleet.is_leader)).groups[0].target == 1


async def test_without_redis_a_target_cannot_be_set(scaler: Scalers, redis_server: RedisServer) -> None:
    async with client(scaler().start().address) as stub:
        await fleet_until(stub, lambda fleet: fleet.is_leader)
        redis_server.stop()
        error = await refusal(stub, "chat", 1)
        assert error.code() is grpc.StatusCode.UNAVAILABLE and "Redis" in (error.details() or "")
        redis_server.start()


async def test_external_workers_count_and_the_leader_is_followed(scaler: Scalers, state_dir: Path) -> None:
    leader = await FakeScheduler(lambda: recorded(state_dir)).start()
    leader.externals = ["compose-1"]
    standby = await FakeScheduler(list, leader_address=leader.address).start()
    process = scaler({"count_external": True}, schedulers=["127.0.0.1:1", standby.address]).start()
    async with client(process.address) as stub:
        fleet = await fleet_until(stub, lambda fleet: fleet.groups[0].ready == 2)
        assert sorted(i.state for i in fleet.instances) == ["external", "ready"]
        assert standby.watchers == 0
    await standby.stop()
    await leader.stop()


async def test_a_crash_loop_is_shown_with_its_cause(scaler: Scalers) -> None:
    async with client(scaler({"args": ["--die"], "target": 1}).start().address) as stub:
        reaped = lambda fleet: sum(a.kind == "reap" for a in fleet.recent_actions) >= 2  # noqa: E731
        fleet = await fleet_until(stub, reaped)
        reasons = {a.kind: a.reason for a in fleet.recent_actions}
        assert "exit status 3" in reasons["reap"] and ".log" in reasons["reap"]
        assert "failures in a row 1" in reasons["start"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scaler: {groups: [{name: chat, model: m, target: 2, max: 1}]}", "target 2 is over max 1"),
        ("scaler: {groups: [{name: Chat!, model: m}]}", "groups"),
        ("scaler: {groups: [{name: a, model: m}, {name: a, model: m}]}", "two groups are named 'a'"),
        ("scaler: {nonsense: 1}", "nonsense"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_status_2(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "hyperflexis.yaml"
    path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "hyperflexis_scaler", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
