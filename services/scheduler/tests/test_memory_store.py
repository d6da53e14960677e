"""What leaders leave to each other, in a real Redis."""

from __future__ import annotations

import contextlib
import time

import pytest
import redis

from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.clock import SystemClock
from hyperflexis_common.config import RedisSettings
from hyperflexis_common.redis_access import RedisAccess
from hyperflexis_scheduler.core.memory import Memory, WorkerRecord
from hyperflexis_scheduler.memory_store import BATCH, MemoryStore

KEEP_US = 3_600_000_000
RECORD = WorkerRecord(WorkerKey("w1", 2**63 + 1), "h:1", "m", b"\x00\xff", (1, 2**64 - 1))


@pytest.fixture
async def access(redis_server, request):
    settings = RedisSettings(url=redis_server.url, prefix=f"{request.node.name}:", timeout_ms=1_000)
    access = RedisAccess(settings, SystemClock())
    yield access
    await access.close()


@pytest.fixture
def store(access):
    return MemoryStore(access, KEEP_US)


def age(access, worker_id: str, written_ms: int | None, text: str = "{}") -> object:
    value = text if written_ms is None else f"{written_ms} {text}"
    return access.client.hset(f"{access.prefix}workers", worker_id, value)


async def test_what_is_written_is_read(store):
    assert await store.read() == Memory()
    assert await store.write(1, Memory((RECORD,), 7))
    memory = await store.read()
    assert [record._replace(age_us=0) for record in memory.workers] == [RECORD] and memory.scaler_epoch == 7
    assert 0 <= memory.workers[0].age_us < 60_000_000


async def test_ages_are_those_of_redis_clock(store, access):
    await store.write(1, Memory((RECORD,)))
    [text] = (await access.client.hvals(f"{access.prefix}workers"))[0].split(b" ", 1)[1:]
    await age(access, "w1", int(time.time() * 1_000) - 600_000, text.decode())
    assert 590_000_000 < (await store.read()).workers[0].age_us < 700_000_000


async def test_what_is_too_old_is_ignored_and_removed(store, access):
    await store.write(1, Memory((RECORD,)))
    await age(access, "old", int(time.time() * 1_000) - KEEP_US // 1_000)
    await age(access, "undated", None)
    assert len((await store.read()).workers) == 1
    assert await access.client.hkeys(f"{access.prefix}workers") == [b"w1"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"incarnation": "x"}', "null"])
async def test_a_record_that_cannot_be_read_hides_no_other(store, access, text):
    await store.write(1, Memory((RECORD,)))
    await age(access, "odd", int(time.time() * 1_000), text)
    assert [record.key.worker_id for record in (await store.read()).workers] == ["w1"]


async def test_records_can_be_read_where_redis_takes_no_writes(store, access, redis_server):
    await store.write(1, Memory((RECORD,)))
    await age(access, "old", 1)
    with contextlib.closing(redis.Redis(port=redis_server.port)) as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            assert len((await store.read()).workers) == 1
        finally:
            client.config_set("min-replicas-to-write", 0)


async def test_a_leader_that_was_replaced_writes_nothing(store, access):
    await access.client.set(f"{access.prefix}epoch", 5)
    assert await store.write(5, Memory(scaler_epoch=2))
    assert not await store.write(4, Memory((RECORD,), 9))
    assert await store.read() == Memory(scaler_epoch=2)


async def test_the_scalers_epoch_never_falls(store):
    await store.write(1, Memory(scaler_epoch=9))
    await store.write(1, Memory(scaler_epoch=3))
    assert (await store.read()).scaler_epoch == 9


async def test_many_workers_come_in_batches_and_other_keys_cost_nothing(store, access):
    async with access.client.pipeline(transaction=False) as pipeline:
        for number in range(100_000):
            pipeline.set(f"{access.prefix}req:{number}", 1)
        await pipeline.execute()
    workers = tuple(RECORD._replace(key=WorkerKey(f"w{number}", 1)) for number in range(2 * BATCH + 1))
    assert await store.write(1, Memory(workers))
    assert len((await store.read()).workers) == len(workers)
