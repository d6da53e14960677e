"""Leadership while Redis answers with errors, or with nonsense: it asks again, leads on, and says what is wrong."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis
from redis.exceptions import ReadOnlyError, ResponseError
from redis_server import RedisServer
from scheduler_rig import Cluster

from hyperflexis_common.clock import FakeClock
from hyperflexis_scheduler.core.dispatch import RoundRobin
from hyperflexis_scheduler.core.election import Election, Lease, Timing
from hyperflexis_scheduler.core.rules import Rules
from hyperflexis_scheduler.core.scheduler import SchedulerCore
from hyperflexis_scheduler.desk import Desk
from hyperflexis_scheduler.faults import Faults
from hyperflexis_scheduler.leadership import Leadership

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

    async def read_workers(self):
        return self._answer("read", [])

    def _answer(self, question, answer):
        self.asked.append(question)
        if self.error is not None:
            raise self.error
        return answer


class Candidate:
    """A Leadership whose time the test moves."""

    def __init__(self) -> None:
        self.clock, self.lease, faults = FakeClock(), FakeLease(), Faults("")
        self.core = SchedulerCore(Rules(), RoundRobin())
        desk = Desk(self.core, self.clock, faults, 100)
        election = Election("me", TIMING, self.clock.now_us())
        self.leadership = Leadership(election, self.lease, desk, self.clock, faults, probe_timeout_s=0.1)

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
        assert type(error).__name__ in candidate.leadership.trouble
        assert await candidate.turn() == ["renew"]
        candidate.lease.error = None
        assert await candidate.turn() == ["renew"]
        assert candidate.leadership.may_act and candidate.leadership.trouble == ""

    async def test_a_standby_that_could_not_look_looks_again(self, error):
        candidate = Candidate()
        candidate.lease.error = error
        assert await candidate.turn() == ["observe"]
        assert await candidate.turn() == ["observe"]
        candidate.lease.error = None
        assert await candidate.turn() == ["observe", "acquire", "read"]
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


async def test_a_real_redis_that_is_out_of_memory_keeps_nobody_from_office_for_good(tmp_path):
    server = RedisServer(tmp_path)
    server.start()
    cluster = Cluster(server, "oom:")
    try:
        with contextlib.closing(redis.Redis(port=server.port)) as client:
            client.config_set("maxmemory", 1)
            app = await cluster.scheduler(leads=False)
            await cluster.until(lambda: "OOM" in app.leadership.trouble, 10)
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
