"""One call to Redis: its limit, and a caller that stops in the middle of it."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from hyperflexis_common.clock import SystemClock
from hyperflexis_common.config import RedisSettings
from hyperflexis_common.redis_access import RedisAccess, RedisAway


@pytest.fixture
async def access(redis_server):
    access = RedisAccess(RedisSettings(url=redis_server.url, timeout_ms=500), SystemClock(), cooldown_us=0)
    yield access
    await access.close()


async def test_who_is_cancelled_in_the_middle_of_a_call_ends(access):
    """Wherever in it: redis-py writes under asyncio.wait_for, which until Python 3.12 forgets a cancellation that comes
    in the moment in which the write is done."""

    async def calls(wanted: asyncio.Event) -> None:
        while wanted.is_set():
            await access.call(lambda client: client.ping())

    for ticks in range(100):
        wanted = asyncio.Event()
        wanted.set()
        task = asyncio.create_task(calls(wanted))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        wanted.clear()
        await asyncio.wait([task])
        assert done, f"it goes on after a cancellation at tick {ticks}"


async def test_who_is_cancelled_by_a_time_out_of_its_own_is_told_so(access):
    """The guard against forgotten cancellations leaves those alone that have been dealt with."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await access.call(lambda client: client.blpop("nothing here", 0.3))
    assert await access.call(lambda client: client.echo("after it")) == b"after it"


async def test_a_redis_that_hangs_is_away_within_the_limit(access, redis_server):
    await access.call(lambda client: client.ping())
    redis_server.pause()
    try:
        began = time.monotonic()
        with pytest.raises(RedisAway):
            await access.call(lambda client: client.ping())
        assert 0.4 < time.monotonic() - began < 2
    finally:
        redis_server.resume()
    with contextlib.suppress(RedisAway):  # the connection of before is not used again
        await access.call(lambda client: client.echo("theirs"))
    assert await access.call(lambda client: client.echo("ours")) == b"ours"
