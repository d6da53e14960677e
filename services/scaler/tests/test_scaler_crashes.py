"""The scaler dies anywhere; the next one comes to exactly the target, and nothing is left over. All for real."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import redis

from .conftest import RedisServer, ScalerProcess, process_of, processes_of, wait_until
from .fake_scheduler import FakeScheduler

pytestmark = pytest.mark.slow

STABLE_S = 1.0
CRASHED = 137


@pytest.fixture
async def scheduler(state_dir: Path) -> AsyncIterator[FakeScheduler]:
    """Shows every recorded worker whose process runs."""

    def workers() -> list[str]:
        running = {process.pid for process in processes_of(state_dir)}
        records = list(state_dir.glob("*.json"))
        return [path.stem for path in records if any(f'"pid": {pid},' in path.read_text() for pid in running)]

    fake = await FakeScheduler(workers).start()
    yield fake
    await fake.stop()


def count(state_dir: Path) -> int:
    return len(processes_of(state_dir))


async def exactly(state_dir: Path, server: RedisServer, expected: int) -> None:
    """That many processes, as many records, no open intent; and so it stays."""
    intents = redis.Redis.from_url(server.url)

    def settled() -> bool:
        records = len(list(state_dir.glob("*.json")))
        return count(state_dir) == records == expected and not intents.hlen("hfx:scaler:intents")

    try:
        await asyncio.to_thread(wait_until, settled)
        await asyncio.sleep(STABLE_S)
        assert settled()
    finally:
        intents.close()


@pytest.mark.parametrize("point", ["intent_written", "started", "state_written"])
async def test_a_crash_while_starting(
    scaler: Callable[..., ScalerProcess], state_dir: Path, redis_server: RedisServer, point: str
) -> None:
    first = scaler().start(faults=f"crash_after={point}")
    assert await asyncio.to_thread(first.wait) == CRASHED
    assert count(state_dir) == (0 if point == "intent_written" else 1)
    scaler().start()
    await exactly(state_dir, redis_server, 2)


@pytest.mark.parametrize("point", ["intent_written", "drained", "stopped"])
async def test_a_crash_while_scaling_in(
    scaler: Callable[..., ScalerProcess],
    state_dir: Path,
    redis_server: RedisServer,
    scheduler: FakeScheduler,
    point: str,
) -> None:
    schedulers = [scheduler.address]
    first = scaler(on_stop="leave", schedulers=schedulers).start()
    await exactly(state_dir, redis_server, 2)
    assert first.end() == 0
    second = await asyncio.to_thread(scaler({"target": 1}, schedulers=schedulers).start, faults=f"crash_after={point}")
    assert await asyncio.to_thread(second.wait) == CRASHED
    scaler({"target": 1}, schedulers=schedulers).start()
    await exactly(state_dir, redis_server, 1)
    assert len({request.worker_id for request in scheduler.applied}) == 1, "the drained one is the one that goes"
    assert all(request.scaler_fence.epoch >= 2 for request in scheduler.applied)


async def test_kill_9_at_any_time_and_again(
    scaler: Callable[..., ScalerProcess], state_dir: Path, redis_server: RedisServer
) -> None:
    for delay_s in (0.0, 0.05, 0.1, 0.2):
        process = scaler().start()
        await asyncio.sleep(delay_s)
        process.end(signal.SIGKILL)
        assert count(state_dir) <= 2
    scaler().start()
    await exactly(state_dir, redis_server, 2)


async def test_a_killed_worker_returns_under_a_new_id(
    scaler: Callable[..., ScalerProcess], state_dir: Path, redis_server: RedisServer
) -> None:
    scaler().start()
    await exactly(state_dir, redis_server, 2)
    victim = processes_of(state_dir)[0].pid
    os.kill(victim, signal.SIGKILL)
    await exactly(state_dir, redis_server, 2)
    assert victim not in [process.pid for process in processes_of(state_dir)]


async def test_a_graceful_stop_takes_the_workers_along(
    scaler: Callable[..., ScalerProcess], state_dir: Path, redis_server: RedisServer
) -> None:
    process = scaler({"args": ["--child", "--detach"]}).start()
    await asyncio.to_thread(wait_until, lambda: count(state_dir) == 4)
    assert await asyncio.to_thread(process.end) == 0
    assert count(state_dir) == 0 and not list(state_dir.glob("*.json"))


async def test_the_deaf_are_killed_at_the_stop(
    scaler: Callable[..., ScalerProcess], state_dir: Path, tmp_path: Path
) -> None:
    process = scaler({"args": ["--deaf"], "target": 1}).start()
    await asyncio.to_thread(wait_until, lambda: any(path.stat().st_size for path in (tmp_path / "logs").glob("*.log")))
    began = time.monotonic()
    assert await asyncio.to_thread(process.end) == 0
    assert time.monotonic() - began >= 2 and count(state_dir) == 0


async def test_workers_that_are_left_are_adopted(
    scaler: Callable[..., ScalerProcess], state_dir: Path, redis_server: RedisServer
) -> None:
    first = scaler(on_stop="leave").start()
    await exactly(state_dir, redis_server, 2)
    before = {process.pid for process in processes_of(state_dir)}
    assert first.end() == 0
    scaler().start()
    await exactly(state_dir, redis_server, 2)
    assert {process.pid for process in processes_of(state_dir)} == before


async def test_a_group_that_is_no_longer_configured_is_stopped(
    scaler: Callable[..., ScalerProcess], state_dir: Path, redis_server: RedisServer
) -> None:
    first = scaler(on_stop="leave").start()
    await exactly(state_dir, redis_server, 2)
    assert first.end() == 0
    scaler({"name": "other", "target": 1}, drain_timeout_s=0.2).start()
    await exactly(state_dir, redis_server, 1)


async def test_without_redis_nothing_grows_and_nothing_ends(
    scaler: Callable[..., ScalerProcess], state_dir: Path, redis_server: RedisServer
) -> None:
    scaler().start()
    await exactly(state_dir, redis_server, 2)
    redis_server.stop()
    victim, survivor = (process.pid for process in processes_of(state_dir))
    os.kill(victim, signal.SIGKILL)
    await asyncio.sleep(2.5)
    assert process_of(state_dir).pid == survivor
    redis_server.start()
    await exactly(state_dir, redis_server, 2)


async def test_a_standby_takes_over(
    scaler: Callable[..., ScalerProcess], state_dir: Path, redis_server: RedisServer
) -> None:
    leader = scaler().start()
    await exactly(state_dir, redis_server, 2)
    scaler().start()
    leader.end(signal.SIGKILL)
    os.kill(processes_of(state_dir)[0].pid, signal.SIGKILL)
    await exactly(state_dir, redis_server, 2)
