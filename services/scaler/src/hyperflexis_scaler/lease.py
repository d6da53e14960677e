"""Leadership among scalers: a lease in Redis, an epoch that only grows, and writes that only the leader makes.

Redis away: nobody can take the lease, nobody can write, so nothing is started; the leader goes on watching.
Redis back without the lease: the leader writes it again. A scaler that sees Redis without its memory (its
epoch counter lower than what was seen) waits a whole lease, in which a living leader comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from hyperflexis.common.v1 import identity_pb2
from hyperflexis_common.clock import Clock
from hyperflexis_common.redis_access import RedisAccess, RedisAway, RedisError

log = structlog.get_logger(__name__)

STAND = """
local holder = redis.call('HMGET', KEYS[1], 'leader_id', 'epoch', 'address')
if holder[1] then return {0, tonumber(holder[2]), holder[1], holder[3]} end
local epoch = tonumber(redis.call('GET', KEYS[2]) or '0')
local floor = tonumber(ARGV[4])
if epoch < floor and ARGV[5] == '0' then return {0, 0, '', ''} end
epoch = math.max(epoch, floor) + 1
redis.call('SET', KEYS[2], epoch)
redis.call('HSET', KEYS[1], 'leader_id', ARGV[1], 'epoch', epoch, 'address', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {1, epoch, ARGV[1], ARGV[2]}
"""

RENEW = """
local holder = redis.call('HMGET', KEYS[1], 'leader_id', 'epoch')
local epoch = tonumber(ARGV[4])
if holder[1] == ARGV[1] and tonumber(holder[2]) == epoch then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 1
end
if holder[1] or tonumber(redis.call('GET', KEYS[2]) or '0') > epoch then return 0 end
redis.call('SET', KEYS[2], epoch)
redis.call('HSET', KEYS[1], 'leader_id', ARGV[1], 'epoch', epoch, 'address', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 2
"""

RELEASE = """
local holder = redis.call('HMGET', KEYS[1], 'leader_id', 'epoch')
if holder[1] == ARGV[1] and tonumber(holder[2]) == tonumber(ARGV[2]) then redis.call('DEL', KEYS[1]) end
return 1
"""


@dataclass(frozen=True, slots=True)
class Term:
    """One scaler's time as leader."""

    epoch: int
    leader_id: str

    def fence(self) -> identity_pb2.Fence:
        return identity_pb2.Fence(epoch=self.epoch, leader_id=self.leader_id)


class Lease:
    """This process's part in the election. `on_change` is called when it begins or ceases to lead."""

    def __init__(
        self, redis: RedisAccess, clock: Clock, leader_id: str, lease_us: int, on_change: Callable[[], None]
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._lease_us = lease_us
        self._on_change = on_change
        self._valid_until_us = 0
        self._amnesia_since_us: int | None = None
        self.leader_id = leader_id
        self.address = ""
        """Ours, for the others to show."""
        self.floor = 0
        """The highest epoch seen anywhere; ours will be higher."""
        self.term: Term | None = None
        """Ours, while no other scaler is known to lead."""
        self.leader_address = ""
        """Whoever leads, as far as is known."""
        self.memory_lost = False
        """The lease had to be written anew: so has everything else that a leader keeps in Redis."""

    def holds(self) -> bool:
        """The lease is certainly ours now, with a tenth of it to spare."""
        return self.term is not None and self._clock.now_us() < self._valid_until_us

    async def keep(self) -> None:
        """Stands and renews until cancelled."""
        while True:
            await self.step()
            await asyncio.sleep(self._lease_us / 3e6)

    async def step(self) -> None:
        """Renews the lease, or stands for it."""
        asked_us = self._clock.now_us()
        try:
            if self.term is not None:
                await self._renew(self.term, asked_us)
            if self.term is None:
                await self._stand(asked_us)
        except (RedisAway, RedisError) as error:
            self._amnesia_since_us = None
            log.debug("lease not reached", error=str(error))

    async def release(self) -> None:
        """Lets the next one lead at once."""
        if self.term is None:
            return
        term, self.term = self.term, None
        keys = (f"{self._redis.prefix}scaler:leader",)
        try:
            await self._redis.call(lambda client: client.eval(RELEASE, 1, *keys, term.leader_id, term.epoch))
        except (RedisAway, RedisError) as error:
            log.info("lease not released; it will lapse", error=str(error))

    async def _renew(self, term: Term, asked_us: int) -> None:
        answer = await self._eval(RENEW, term.epoch)
        if answer == 0:
            log.warning("another scaler leads", epoch=term.epoch)
            self.floor = max(self.floor, term.epoch)
            self.term = None
            self._on_change()
            return
        self.memory_lost = self.memory_lost or answer == 2
        self._valid_until_us = asked_us + self._lease_us * 9 // 10

    async def _stand(self, asked_us: int) -> None:
        patient = self._amnesia_since_us is not None and asked_us - self._amnesia_since_us >= self._lease_us
        taken, epoch, _, address = await self._eval(STAND, self.floor, int(patient))
        if epoch == 0:
            self._amnesia_since_us = asked_us if self._amnesia_since_us is None else self._amnesia_since_us
            return
        self._amnesia_since_us = None
        self.floor = max(self.floor, epoch)
        self.leader_address = address.decode()
        if taken:
            self.term = Term(epoch, self.leader_id)
            self.memory_lost = False
            self._valid_until_us = asked_us + self._lease_us * 9 // 10
            log.info("leading", epoch=epoch)
            self._on_change()

    async def _eval(self, script: str, *numbers: int) -> Any:
        prefix = self._redis.prefix
        keys = (f"{prefix}scaler:leader", f"{prefix}scaler:epoch")
        arguments: list[str | int] = [self.leader_id, self.address, self._lease_us // 1_000, *numbers]
        return await self._redis.call(lambda client: client.eval(script, 2, *keys, *arguments))
