"""Runs the election against Redis and the other schedulers, and the core while this scheduler leads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import grpc.aio
import structlog

from hyperflexis.common.v1 import identity_pb2
from hyperflexis.scheduler.v1 import router_session_pb2, scheduler_service_pb2, scheduler_service_pb2_grpc
from hyperflexis_common.channel import open_channel
from hyperflexis_common.clock import Clock
from hyperflexis_common.redis_access import RedisAway
from hyperflexis_common.server import cancel_all
from hyperflexis_scheduler.core.election import (
    Acquire,
    Election,
    Lead,
    Observe,
    Output,
    Probe,
    Renew,
    StepDown,
)
from hyperflexis_scheduler.desk import Desk
from hyperflexis_scheduler.faults import Faults
from hyperflexis_scheduler.leader_lease import LeaderLease
from hyperflexis_scheduler.memory_keeper import MemoryKeeper

log = structlog.get_logger(__name__)

TICK_S = 0.05
Answer = TypeVar("Answer")


class Leadership:
    """Start `run` as a task; `stop` hands the lease over."""

    def __init__(
        self,
        election: Election,
        lease: LeaderLease,
        desk: Desk,
        clock: Clock,
        faults: Faults,
        probe_timeout_s: float,
        keeper: MemoryKeeper,
    ) -> None:
        self.election = election
        self._lease = lease
        self._desk = desk
        self._clock = clock
        self._faults = faults
        self.address = ""
        """What peers dial; set before `run`."""
        self._probe_timeout_s = probe_timeout_s
        self._keeper = keeper
        self._tasks: set[asyncio.Task[None]] = set()
        desk.on_higher_epoch = self._heard

    @property
    def may_act(self) -> bool:
        return self.election.may_act(self._clock.now_us())

    async def certain(self) -> None:
        """Returns when this process knows again whether it leads; at once unless it slept for long."""
        while self.election.leading and not self.may_act:
            await asyncio.sleep(TICK_S / 2)

    def fence(self) -> identity_pb2.Fence:
        """Of the leader, as far as known: epoch 0 = unknown."""
        election = self.election
        if election.leading:
            return identity_pb2.Fence(epoch=election.epoch, leader_id=election.leader_id)
        known = election.last_known
        return identity_pb2.Fence(epoch=known.epoch, leader_id=known.leader_id) if known else identity_pb2.Fence()

    def leader_address(self) -> str:
        if self.election.leading:
            return self.address
        return self.election.last_known.address if self.election.last_known else ""

    async def run(self) -> None:
        """Ticks the election and the core until cancelled."""
        keeping = asyncio.create_task(self._keeper.run(lambda: self.may_act), name="memory")
        try:
            while True:
                self._perform(self.election.tick(self._clock.now_us()))
                if self.may_act:
                    self._desk.do(self._desk.core.tick)
                await asyncio.sleep(TICK_S)
        finally:
            await cancel_all(keeping, *self._tasks)

    async def stop(self) -> None:
        """Call after `run` was cancelled: ends the reign and leaves the lease to a standby."""
        epoch = self.election.epoch
        self._desk.do(self._desk.core.end)
        if epoch:
            await self._release(epoch)

    def _heard(self, epoch: int) -> None:
        self._perform(self.election.heard(epoch, self._clock.now_us()))

    def _perform(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Observe(ticket):
                    self._spawn(self._observe(ticket))
                case Acquire(ticket, floor):
                    self._spawn(self._acquire(ticket, floor))
                case Renew(ticket, epoch):
                    self._spawn(self._renew(ticket, epoch))
                case Probe(ticket, address):
                    self._spawn(self._probe(ticket, address))
                case Lead(fence):
                    self._spawn(self._begin(fence))
                case StepDown(reason, epoch):
                    log.warning("stepping down", reason=reason, epoch=epoch)
                    self._desk.do(self._desk.core.end)
                    self._spawn(self._release(epoch))
        not_leader = router_session_pb2.NotLeader(leader_address=self.leader_address(), fence=self.fence())
        self._desk.core.not_leader = not_leader

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("election task failed", exc_info=task.exception())

    async def _observe(self, ticket: int) -> None:
        lease, counter = await _answer(self._lease.observe(), "observe") or (None, None)
        reachable = counter is not None
        self._perform(self.election.observed(ticket, reachable, lease, counter or 0, self._clock.now_us()))

    async def _acquire(self, ticket: int, floor: int) -> None:
        epoch, holder = await _answer(self._lease.acquire(self.address, floor), "acquire") or (0, None)
        self._perform(self.election.acquired(ticket, epoch, holder, self._clock.now_us()))

    async def _renew(self, ticket: int, epoch: int) -> None:
        answer = await _answer(self._lease.renew(self.address, epoch), "renew")
        held, holder = answer or (False, None)
        self._perform(self.election.renewed(ticket, answer is not None, held, holder, self._clock.now_us()))

    async def _probe(self, ticket: int, address: str) -> None:
        leads = await _answer(self._asks_leader(address), "probe") or False
        self._perform(self.election.probed(ticket, leads, self._clock.now_us()))

    async def _asks_leader(self, address: str) -> bool:
        async with open_channel(address) as channel:
            stub = scheduler_service_pb2_grpc.SchedulerServiceStub(channel)
            request = scheduler_service_pb2.GetLeaderRequest()
            return bool((await stub.GetLeader(request, timeout=self._probe_timeout_s)).is_leader)

    async def _begin(self, fence: identity_pb2.Fence) -> None:
        memory = await self._keeper.read()
        if self.election.epoch != fence.epoch:
            return
        log.info("leading", epoch=fence.epoch, known_workers=len(memory.workers) if memory is not None else None)
        self._faults.begin()
        self._desk.do(self._desk.core.begin, fence, memory)

    async def _release(self, epoch: int) -> None:
        if await _answer(self._lease.release(epoch), "release") is None:
            log.info("lease not released; it will lapse", epoch=epoch)


async def _answer(question: Awaitable[Answer], name: str) -> Answer | None:
    """None where there is no answer, whatever the reason: an election that waits for one would wait for ever."""
    try:
        return await question
    except (RedisAway, grpc.aio.AioRpcError) as error:
        log.debug("no answer", question=name, error=type(error).__name__)
    except Exception:
        log.exception("no answer", question=name)
    return None
