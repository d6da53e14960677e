"""The worker's session with the scheduler that leads, over gRPC: found, kept, left, found again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry
from worker_process_rig import FakeScheduler, eventually, worker_settings

from hyperflexis_worker.app import Worker


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
