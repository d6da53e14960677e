"""The worker's session with the scheduler that leads, over gRPC: found, kept, left, found again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import Mock

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from worker_process_rig import FakeScheduler, eventually, worker_settings

from hyperflexis_worker.app import Worker
from hyperflexis_worker.scheduler_link import SchedulerLink


@pytest.fixture
async def schedulers() -> AsyncIterator[list[FakeScheduler]]:
    found = [FakeScheduler() for _ in range(3)]
    for one in found:
        await one.start()
    yield found
    for one in found:
        await one.stop()


async def started(*schedulers: FakeScheduler) -> Worker:
    settings = worker_settings(*(one.address for one in schedulers), engine_mode="thread")
    worker = Worker(settings, CollectorRegistry())
    await worker.start()
    return worker


async def test_standbys_that_name_each_other_are_not_stormed(schedulers: list[FakeScheduler]) -> None:
    one, two, _ = schedulers
    one.names(two)
    two.names(one)
    worker = await started(one, two)
    await asyncio.sleep(1.5)
    assert 2 <= one.dials + two.dials <= 20
    one.answer = None
    await eventually(lambda: one.sessions)
    await worker.close()


async def test_standbys_that_name_each_other_do_not_hide_the_leader(schedulers: list[FakeScheduler]) -> None:
    one, two, leader = schedulers
    one.names(two)
    two.names(one)
    worker = await started(one, two, leader)
    await eventually(lambda: leader.sessions, limit_s=5)
    await worker.close()


async def test_a_hint_is_followed_at_once(schedulers: list[FakeScheduler]) -> None:
    standby, leader, _ = schedulers
    standby.names(leader)
    worker = await started(standby)
    await eventually(lambda: leader.sessions, limit_s=5)
    assert standby.dials == 1
    await worker.close()


async def test_a_gap_in_the_commands_brings_the_worker_back(scheduler: FakeScheduler, worker: Worker) -> None:
    scheduler._seq = 3
    await scheduler.run("q", 1)
    await eventually(lambda: scheduler.sessions == 2)
    assert scheduler.kinds("q") == []


async def test_pings_are_answered(scheduler: FakeScheduler, worker: Worker) -> None:
    await scheduler.ping(7)
    await eventually(lambda: scheduler.pongs == [7])


@pytest.mark.parametrize("turns", range(6))
async def test_a_stop_is_heard_whatever_comes_at_the_same_moment(turns: int) -> None:
    """A worker that leaves as the scheduler closes its session used to dial again instead, for ever."""
    link = SchedulerLink([], core=Mock(), apply=Mock(), clock=Mock())
    answer = asyncio.get_running_loop().create_future()

    async def read() -> Any:
        return await answer

    reading = asyncio.create_task(link._read(Mock(read=read), "s:1"))
    await asyncio.sleep(0.01)
    answer.set_result(grpc.aio.EOF)
    for _ in range(turns):
        await asyncio.sleep(0)
    if reading.cancel():
        with pytest.raises(asyncio.CancelledError):
            await reading


async def test_a_lost_registered_is_not_waited_for(schedulers: list[FakeScheduler]) -> None:
    """The scheduler takes the worker for registered and pings it: its silence never ends the session."""
    schedulers[0].lost_registered = 1
    worker = await started(schedulers[0])
    await eventually(lambda: schedulers[0].sessions, limit_s=5)
    await worker.close()
