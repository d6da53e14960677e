"""Leadership while Redis answers with errors, or with nonsense: it asks again, leads on, and says what is wrong."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis
from redis.exceptions import ReadOnlyError, ResponseError
from redis_server import RedisServer
from scheduler_rig import LEASE_MS, Cluster

from hyperflexis.scheduler.v1 import scheduler_service_pb2 as ss
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.clock import FakeClock
from hyperflexis_common.redis_access import RedisAway
from hyperflexis_scheduler import memory_keeper
from hyperflexis_scheduler.core.dispatch_policy import RoundRobin
from hyperflexis_scheduler.core.election import Election, Lease, Timing
from hyperflexis_scheduler.core.memory import Memory, WorkerRecord
from hyperflexis_scheduler.core.rules import Rules
from hyperflexis_scheduler.core.scheduler import SchedulerCore
from hyperflexis_scheduler.desk import Desk
from hyperflexis_scheduler.faults import Faults
from hyperflexis_scheduler.leadership import Leadership
from hyperflexis_scheduler.memory_keeper import MemoryKeeper

TIMING = Timing()


class FakeLease:
    """A lease that is free, in a Redis that answers errors while `error` is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.holder: Lease | None = Lease("", 4, "")
        self.asked: list[str] = []

    async def observe(self):
        return self._answer("observe", (self.holder, 4))

    async def acquire(self, address, floor):
        return self._answer("acquire", (floor + 1, None))

    async def renew(self, address, epoch):
        return self._answer("renew", (True, None))

    async def release(self, epoch):
        self._answer("release", None)

    def _answer(self, question, answer):
        self.asked.append(question)
        if self.error is not None:
            raise self.error
        return answer


class FakeStore:
    def __init__(self) -> None:
        self.error: Exception | None = None
        self.memory = Memory()
        self.written: list[Memory] = []
        self.reads = 0

    async def read(self):
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.memory

    async def write(self, epoch, memory):
        if self.error is not None:
            raise self.error
        self.written.append(memory)


class Candidate:
    """A Leadership whose time the test moves."""

    def __init__(self) -> None:
        self.clock, self.lease, faults = FakeClock(), FakeLease(), Faults("")
        self.core, self.store = SchedulerCore(Rules(), RoundRobin()), FakeStore()
        desk = Desk(self.core, self.clock, faults, 100)
        election = Election("me", TIMING, self.clock.now_us())
        self.keeper = MemoryKeeper(self.store, desk)
        self.leadership = Leadership(
            election, self.lease, desk, self.clock, faults, probe_timeout_s=0.1, keeper=self.keeper
        )

    async def turn(self, by_us: int = TIMING.renew_us) -> list[str]:
        """Time passes; what was asked meanwhile."""
        self.lease.asked.clear()
        self.clock.advance(by_us)
        self.leadership._perform(self.leadership.election.tick(self.clock.now_us()))
        while self.leadership._tasks:
            await asyncio.gather(*self.leadership._tasks, return_exceptions=True)
            await asyncio.sleep(0)
        return list(self.lease.asked)


ERRORS = [ResponseError("OOM"), ReadOnlyError("READONLY"), ValueError("no JSON"), KeyError("epoch")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
class TestErrors:
    async def test_a_leader_whose_renewal_failed_leads_on_and_renews_again(self, error):
        candidate = Candidate()
        await candidate.turn()
        candidate.lease.error = error
        assert await candidate.turn() == ["renew"]
        assert await candidate.turn() == ["renew"]
        candidate.lease.error = None
        assert await candidate.turn() == ["renew"]
        assert candidate.leadership.may_act

    async def test_a_standby_that_could_not_look_looks_again(self, error):
        candidate = Candidate()
        candidate.lease.error = error
        assert await candidate.turn() == ["observe"]
        assert await candidate.turn() == ["observe"]
        candidate.lease.error = None
        assert await candidate.turn() == ["observe", "acquire"]
        assert candidate.core.cell is not None

    async def test_a_candidate_that_could_not_acquire_stands_again(self, error):
        candidate = Candidate()
        acquire = candidate.lease.acquire

        async def fails(address, floor):
            raise error

        candidate.lease.acquire = fails
        await candidate.turn()
        candidate.lease.acquire = acquire
        await candidate.turn()
        assert candidate.core.cell is not None

    async def test_a_probe_that_fails_in_any_way_is_answered(self, error, monkeypatch):
        def fails(address):
            raise error

        monkeypatch.setattr("hyperflexis_scheduler.leadership.open_channel", fails)
        candidate = Candidate()
        candidate.lease.holder = Lease("other", 3, "nowhere", 1)
        await candidate.turn()
        candidate.lease.holder = None
        for _ in range(5):
            await candidate.turn()
        assert candidate.core.cell is not None


ODD = [*ERRORS, RedisAway("away"), TypeError("nonsense")]


class TestMemory:
    @pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
    async def test_a_leader_begins_without_what_it_cannot_read_and_reads_it_later(self, error):
        candidate = Candidate()
        candidate.store.error = error
        await candidate.turn()
        assert candidate.core.cell is not None and not candidate.core.cell.remembers
        await candidate.keeper._keep()
        assert not candidate.core.cell.remembers and not candidate.store.written
        candidate.store.error = None
        candidate.store.memory = Memory((WorkerRecord(WorkerKey("w", 2), "", "m", b"", (1,)),), scaler_epoch=4)
        await candidate.keeper._keep()
        assert candidate.core.cell.fleet.lives.is_retired(WorkerKey("w", 1))
        assert candidate.store.written == [Memory(scaler_epoch=4)]

    async def test_what_must_not_be_forgotten_is_written_at_once(self, monkeypatch):
        monkeypatch.setattr(memory_keeper, "PERIOD_S", 3_600)
        candidate = Candidate()
        await candidate.turn()
        running = asyncio.create_task(candidate.keeper.run(lambda: True))
        drain = ss.ApplyRequest(action_id="a", worker_id="w", drain={}, scaler_fence={"epoch": 3})
        candidate.keeper._desk.perform(candidate.core.apply(drain, candidate.clock.now_us())[1])
        async with asyncio.timeout(10):
            while not candidate.store.written:
                await asyncio.sleep(0)
        assert candidate.store.written[0].scaler_epoch == 3
        running.cancel()

    async def test_a_long_reign_tidies_up_now_and_then(self, monkeypatch):
        monkeypatch.setattr(memory_keeper, "TIDY_EVERY", 3)
        candidate = Candidate()
        await candidate.turn()
        reads = candidate.store.reads
        for _ in range(6):
            await candidate.keeper._keep()
        assert candidate.store.reads == reads + 2 and len(candidate.store.written) == 6


async def test_a_real_redis_that_is_out_of_memory_keeps_nobody_from_office_for_good(tmp_path):
    server = RedisServer(tmp_path)
    server.start()
    cluster = Cluster(server, "oom:")
    try:
        with contextlib.closing(redis.Redis(port=server.port)) as client:
            client.config_set("maxmemory", 1)
            app = await cluster.scheduler(leads=False)
            await asyncio.sleep(2 * LEASE_MS / 1_000)
            assert not app.leadership.election.leading
            client.config_set("maxmemory", 0)
            await cluster.until(lambda: app._core.cell is not None, 10)
            client.config_set("maxmemory", 1)
            await cluster.until(lambda: not client.exists("oom:leader"), 10)
            client.config_set("maxmemory", 0)
            await cluster.until(lambda: client.exists("oom:leader"), 10)
            assert app.leadership.election.epoch == 1 and app._core.cell is not None
    finally:
        await cluster.close()
        server.kill()
