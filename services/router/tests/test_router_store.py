"""Records in a real Redis: fenced, repeatable, taken over exactly once."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis_common.clock import FakeClock
from hyperflexis_common.config import RedisSettings
from hyperflexis_common.redis_access import RedisAccess, RedisAway
from hyperflexis_common.tokens import pack
from hyperflexis_router.core.submission import NewRequest
from hyperflexis_router.faults import Faults
from hyperflexis_router.store import MISSING, OTHER_OWNER, WRITTEN, Held, Origin, OwnershipLost, RequestStore

ORIGIN = Origin(return_text=True, idempotency_key="key", digest="d")


def request(request_id: str = "r", owner_gen: int = 1) -> NewRequest:
    slo = slo_pb2.Slo(tier="chat", ttft_us=5)
    sampling = sampling_pb2.SamplingParams(seed=2**64 - 1)
    return NewRequest(request_id, "m", "t", pack([1, 2]), sampling, 9, slo, 0, 1_000, owner_gen)


class Desk:
    """A store, and the Redis below it."""

    def __init__(self, url: str, prefix: str, router_id: str) -> None:
        self.faults = Faults("")
        settings = RedisSettings(url=url, prefix=prefix, timeout_ms=1_000)
        self.access = RedisAccess(settings, FakeClock(), cooldown_us=0)
        self.store = RequestStore(self.access, router_id, self.faults)


@pytest.fixture
async def desks(shared_redis: Any) -> AsyncIterator[list[Desk]]:
    prefix = f"{uuid.uuid4().hex}:"
    desks = [Desk(shared_redis.url, prefix, f"router-{index}") for index in range(2)]
    yield desks
    for desk in desks:
        await desk.access.close()


@pytest.fixture
def store(desks: list[Desk]) -> RequestStore:
    return desks[0].store


async def test_a_record_round_trips(store: RequestStore) -> None:
    assert await store.record(request(), ORIGIN, 5_000_000) is None
    record = await store.read("r")
    assert record is not None
    assert (record.tenant, record.model, record.prompt, record.max_tokens) == ("t", "m", pack([1, 2]), 9)
    assert (record.sampling.seed, record.slo.ttft_us, record.origin) == (2**64 - 1, 5, ORIGIN)
    assert (record.owner_gen, record.router_id, record.state) == (1, "router-0", "queued")
    assert 5_000_000 <= record.age_us < 8_000_000
    assert await store.read("other") is None


async def test_recording_twice_changes_nothing(store: RequestStore) -> None:
    await store.record(request(), ORIGIN, 0)
    await store.run([store.append("r", 1, 0, pack([7]), 3)])
    assert await store.record(request(), ORIGIN, 0) is None
    record = await store.read("r")
    assert record is not None and record.journal == pack([7]) and record.first_token_us == 3
    with pytest.raises(OwnershipLost):
        await store.record(request(owner_gen=2), ORIGIN, 0)


async def test_an_idempotency_key_stands_for_one_request(store: RequestStore) -> None:
    await store.record(request(), ORIGIN, 0)
    assert await store.record(request("other"), ORIGIN, 0) == Held("r", "d")
    assert await store.read("other") is None


async def test_journal_writes_are_fenced_and_repeatable(store: RequestStore) -> None:
    await store.record(request(), ORIGIN, 0)
    first, second = store.append("r", 1, 0, pack([7, 8]), None), store.append("r", 1, 2, pack([9]), None)
    assert await store.run([first, second, second]) == [WRITTEN] * 3
    assert await store.run([store.append("r", 2, 3, pack([0]), None)]) == [OTHER_OWNER]
    assert await store.run([store.append("r", 1, 9, pack([0]), None)]) == [MISSING]
    assert await store.run([store.append("none", 1, 0, pack([0]), None)]) == [MISSING]
    record = await store.read("r")
    assert record is not None and record.journal == pack([7, 8, 9])


async def test_a_finished_request_keeps_its_result_and_loses_its_prompt(store: RequestStore) -> None:
    await store.record(request(), ORIGIN, 0)
    result = pb.Finished(reason=sampling_pb2.FINISH_REASON_LENGTH, output_tokens=3)
    assert await store.run([store.finish("r", gen, result, "t", ORIGIN) for gen in (2, 1)]) == [OTHER_OWNER, WRITTEN]
    record = await store.read("r")
    assert record is not None and record.finished == result and record.prompt == b"" and record.state == "finished"
    adopted = await store.adopt("r", 1, 5)
    assert adopted is not None and adopted.owner_gen == 1


async def test_everything_expires(desks: list[Desk]) -> None:
    store, client = desks[0].store, desks[0].access.client
    await store.record(request(), ORIGIN, 0)
    await store.run([store.append("r", 1, 0, pack([1]), None)])
    await store.run([store.finish("r", 1, pb.Finished(), "t", ORIGIN)])
    keys = await client.keys(f"{desks[0].access.prefix}*")
    assert len(keys) == 3
    for key in keys:
        assert await client.ttl(key) > 0
        assert await client.ttl(key) <= 600


async def test_two_routers_adopt_at_once_and_one_owns(desks: list[Desk]) -> None:
    await desks[0].store.record(request(), ORIGIN, 0)
    for round_ in range(20):
        before = await desks[0].store.read("r")
        assert before is not None
        answers = await asyncio.gather(
            *(desk.store.adopt("r", before.owner_gen, 100 + 2 * round_ + index) for index, desk in enumerate(desks)),
            return_exceptions=True,
        )
        assert sorted(isinstance(answer, OwnershipLost) for answer in answers) == [False, True]
        winner = next(answer for answer in answers if not isinstance(answer, BaseException))
        assert winner is not None
        touches = [
            store.touch(request(owner_gen=gen), ORIGIN, "running")
            for store in [desks[0].store]
            for gen in (100 + 2 * round_, 101 + 2 * round_)
        ]
        assert sorted(await desks[0].store.run(touches)) == [OTHER_OWNER, WRITTEN]
    assert await desks[0].store.adopt("none", 1, 2) is None


async def test_a_lost_reply_may_be_repeated(desks: list[Desk]) -> None:
    store, faults = desks[0].store, desks[0].faults
    for repeat in range(2):
        if repeat == 0:
            faults.drop_next_reply()
            with pytest.raises(RedisAway):
                await store.record(request(), ORIGIN, 0)
        else:
            assert await store.record(request(), ORIGIN, 0) is None
    faults.drop_next_reply()
    with pytest.raises(RedisAway):
        await store.run([store.append("r", 1, 0, pack([7]), None)])
    await store.run([store.append("r", 1, 0, pack([7]), None), store.append("r", 1, 1, pack([8]), None)])
    record = await store.read("r")
    assert record is not None and record.journal == pack([7, 8])


async def test_a_redis_that_restarts_empty_is_used_again(redis_server: Any) -> None:
    desk = Desk(redis_server.url, "p:", "router")
    await desk.store.record(request(), ORIGIN, 0)
    redis_server.kill()
    with pytest.raises(RedisAway):
        await desk.store.run([desk.store.touch(request(), ORIGIN, "running")])
    redis_server.start()
    assert await desk.store.run([desk.store.touch(request(), ORIGIN, "running")]) == [MISSING]
    assert await desk.store.record(request(), ORIGIN, 0) is None
    await desk.access.close()


async def test_an_append_that_comes_again_late_takes_nothing_away(store: RequestStore) -> None:
    await store.record(request(), ORIGIN, 0)
    first = store.append("r", 1, 0, pack([1, 2]), None)
    await store.run([first, store.append("r", 1, 2, pack([3, 4]), None), first])
    record = await store.read("r")
    assert record is not None and record.journal == pack([1, 2, 3, 4])


async def test_the_clients_own_tokens_win_over_the_journal_on_adoption(store: RequestStore) -> None:
    await store.record(request(), ORIGIN, 0)
    await store.run([store.append("r", 1, 0, pack([1, 2, 3, 4]), None)])
    agreed = await store.adopt("r", 1, 2, 1, pack([2, 3]))
    assert agreed is not None and agreed.journal == pack([1, 2, 3, 4])
    for _ in range(2):  # and again, where the reply was lost
        contradicted = await store.adopt("r", 2, 3, 2, pack([9]))
        assert contradicted is not None and contradicted.journal == pack([1, 2])


async def test_a_downgrade_goes_along_to_the_next_owner(store: RequestStore) -> None:
    await store.record(request(), ORIGIN, 0)
    await store.run([store.downgrade("r", 1, slo_pb2.Slo(tier="slow", ttft_us=99))])
    record = await store.adopt("r", 1, 2)
    assert record is not None and record.slo.tier == "chat"
    assert record.served_slo == slo_pb2.Slo(tier="slow", ttft_us=99)


async def test_a_long_request_keeps_its_idempotency_key(desks: list[Desk]) -> None:
    store, access = desks[0].store, desks[0].access
    await store.record(request(), ORIGIN, 0)
    await access.client.expire(f"{access.prefix}idem:t:key", 5)
    await store.run([store.touch(request(), ORIGIN, "running")])
    assert await access.client.ttl(f"{access.prefix}idem:t:key") > 60


async def test_no_tenants_key_is_another_tenants(store: RequestStore) -> None:
    for tenant, key in (("a:b", "c"), ("a", "b:c")):
        new = dataclasses.replace(request(f"{tenant} {key}"), tenant=tenant)
        assert await store.record(new, Origin(True, key, "d"), 0) is None


async def test_a_crowd_of_calls_is_no_outage(desks: list[Desk]) -> None:
    await desks[0].store.record(request(), ORIGIN, 0)
    records = await asyncio.gather(*(desks[0].store.read("r") for _ in range(200)))
    assert all(record is not None for record in records) and not desks[0].access.away


async def test_a_redis_that_answers_with_errors_is_away(redis_server: Any) -> None:
    desk = Desk(redis_server.url, "p:", "router")
    await desk.access.client.config_set("maxmemory", 1)
    with pytest.raises(RedisAway):
        await desk.store.record(request(), ORIGIN, 0)
    await desk.access.client.config_set("maxmemory", 0)
    assert await desk.store.record(request(), ORIGIN, 0) is None
    await desk.access.close()
