"""A scheduler that records, a worker of an engine process that has registered with it, a core that requests come to."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from arrival_rig import Target
from prometheus_client import CollectorRegistry
from worker_process_rig import FakeScheduler, eventually, worker_settings

from hyperflexis_worker.app import Worker


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    scheduler = FakeScheduler()
    await scheduler.start()
    yield scheduler
    await scheduler.stop()


@pytest.fixture
async def worker(scheduler: FakeScheduler) -> AsyncIterator[Worker]:
    worker = Worker(worker_settings(scheduler.address), CollectorRegistry())
    await worker.start()
    await eventually(lambda: scheduler.sessions)
    yield worker
    await worker.close()


@pytest.fixture
def target() -> Target:
    return Target()
