"""Leadership and the fleet log over a real Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from hyperflexis_common.clock import FakeClock
from hyperflexis_common.config import RedisSettings
from hyperflexis_common.redis_access import RedisAccess
from hyperflexis_scaler.core.action import Intent, Kind
from hyperflexis_scaler.fleet_log import FleetLog, NotRecorded
from hyperflexis_scaler.lease import Lease, Term

from .conftest import RedisServer

LEASE_US = 3_000_000
INTENT = Intent("1-a-1", Kind.START, "chat", "chat-1-a-1", 5, "why")


class Cell:
    """One Redis and one clock for several scalers. The clock is not Redis's: leases there end by expire()."""

    def __init__(self, server: RedisServer) -> None:
        self.clock = FakeClock()
        self.redis = RedisAccess(RedisSettings(url=server.url, timeout_ms=1_000), self.clock)
        self.log = FleetLog(self.redis)
        self.changes: list[str] = []

    def scaler(self, name: str) -> Lease:
        lease = Lease(self.redis, self.clock, name, LEASE_US, lambda: self.changes.append(name))
        lease.address = f"{name}:50054"
        return lease

    async def expire(self) -> None:
        await self.redis.client.delete("hfx:scaler:leader")

    async def forget_all(self) -> None:
        await self.redis.client.flushall()


@pytest.fixture
async def cell(redis_server: RedisServer) -> AsyncIterator[Cell]:
    cell = Cell(redis_server)
    yield cell
    await cell.redis.close()


async def test_one_leads_the_other_knows_it(cell: Cell) -> None:
    first, second = cell.scaler("one"), cell.scaler("two")
    await first.step()
    await second.step()
    assert first.term == Term(1, "one") and first.holds()
    assert second.term is None and second.leader_address == "one:50054"
    assert cell.changes == ["one"]


async def test_a_lapsed_lease_passes_on_and_the_old_leader_steps_down(cell: Cell) -> None:
    first, second = cell.scaler("one"), cell.scaler("two")
    await first.step()
    cell.clock.advance(LEASE_US)
    assert not first.holds(), "it knows by itself"
    await cell.expire()
    await second.step()
    assert second.term == Term(2, "two")
    await first.step()
    assert first.term is None and first.leader_address == "two:50054"


async def test_a_released_lease_is_free_at_once(cell: Cell) -> None:
    first, second = cell.scaler("one"), cell.scaler("two")
    await first.step()
    await second.step()
    await first.release()
    await second.step()
    assert second.term == Term(2, "two")


async def test_a_leader_writes_its_lease_again_into_an_empty_redis(cell: Cell) -> None:
    first, second = cell.scaler("one"), cell.scaler("two")
    await first.step()
    await second.step()
    await cell.forget_all()
    await second.step()
    assert second.term is None, "Redis knows less than it does: it waits"
    await first.step()
    assert first.term == Term(1, "one") and first.memory_lost


async def test_a_standby_takes_an_empty_redis_over_after_a_whole_lease(cell: Cell) -> None:
    first, second = cell.scaler("one"), cell.scaler("two")
    await first.step()
    await second.step()
    await cell.forget_all()
    await second.step()
    cell.clock.advance(LEASE_US - 1)
    await second.step()
    assert second.term is None
    cell.clock.advance(1)
    await second.step()
    assert second.term == Term(2, "two"), "above what it saw"


async def test_a_leader_that_missed_a_whole_term_of_another_steps_down(cell: Cell) -> None:
    first, second = cell.scaler("one"), cell.scaler("two")
    await first.step()
    await cell.expire()
    await second.step()
    await second.release()
    await first._renew(Term(1, "one"), cell.clock.now_us())
    assert first.term is None


async def test_redis_away_takes_the_right_to_act_not_the_term(cell: Cell, redis_server: RedisServer) -> None:
    first = cell.scaler("one")
    await first.step()
    redis_server.stop()
    cell.clock.advance(LEASE_US)
    await first.step()
    assert first.term == Term(1, "one") and not first.holds()
    redis_server.start()
    cell.clock.advance(LEASE_US)
    await first.step()
    assert first.term == Term(1, "one") and first.holds() and first.memory_lost


async def test_the_epoch_is_above_every_epoch_seen(cell: Cell) -> None:
    lease = cell.scaler("one")
    lease.floor = 41
    await lease.step()
    cell.clock.advance(LEASE_US)
    await lease.step()
    assert lease.term == Term(42, "one")


async def test_only_the_leader_records(cell: Cell) -> None:
    lease = cell.scaler("one")
    await lease.step()
    assert lease.term is not None
    await cell.log.record(lease.term, [INTENT])
    for wrong in (Term(0, "one"), Term(1, "two")):
        for attempt in (
            cell.log.record(wrong, [INTENT]),
            cell.log.forget(wrong, ["1-a-1"]),
            cell.log.save_target(wrong, "chat", 1, 1),
        ):
            with pytest.raises(NotRecorded, match="another scaler leads"):
                await attempt
    assert await cell.log.intents() == [INTENT]
    await cell.log.forget(lease.term, ["1-a-1", "unknown"])
    assert await cell.log.intents() == []


async def test_targets_and_foreign_intents(cell: Cell) -> None:
    lease = cell.scaler("one")
    await lease.step()
    assert lease.term is not None
    await cell.log.save_target(lease.term, "chat", 3, 2)
    assert await cell.log.targets() == {"chat": (3, 2)}
    await cell.redis.client.hset("hfx:scaler:intents", "x", "from a later version")
    assert await cell.log.intents() == []


async def test_redis_away_is_said(cell: Cell, redis_server: RedisServer) -> None:
    redis_server.stop()
    with pytest.raises(NotRecorded, match="Redis is away"):
        await cell.log.record(Term(1, "one"), [INTENT])
    with pytest.raises(NotRecorded, match="Redis is away"):
        await cell.log.intents()
    redis_server.start()
