"""The leader's lease and the epoch counter, in Redis.

Times in the scripts are milliseconds. A lost reply is never repeated blindly: each script, run twice, leaves
what it left the first time, except `acquire`, which then wastes an epoch.
"""

from __future__ import annotations

import json
from typing import Any

from hyperflexis_common.redis_access import RedisAccess
from hyperflexis_scheduler.core.election import Lease

_ACQUIRE = """
local held = redis.call('GET', KEYS[1])
if held then
  local lease = cjson.decode(held)
  if lease.leader_id ~= '' and lease.leader_id ~= ARGV[1] then return {0, held, redis.call('PTTL', KEYS[1])} end
end
local epoch = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[3])) + 1
redis.call('SET', KEYS[2], string.format('%d', epoch))
redis.call('SET', KEYS[1], cjson.encode({leader_id=ARGV[1], epoch=epoch, address=ARGV[2]}), 'PX', ARGV[4])
return {epoch, '', 0}
"""

_RENEW = """
local counter = tonumber(redis.call('GET', KEYS[2]) or '0')
local mine = tonumber(ARGV[3])
local held = redis.call('GET', KEYS[1])
if counter > mine then return {0, held or '', redis.call('PTTL', KEYS[1])} end
if held then
  local lease = cjson.decode(held)
  local other = lease.leader_id ~= '' and lease.leader_id ~= ARGV[1]
  if lease.epoch > mine or (lease.epoch == mine and other) then return {0, held, redis.call('PTTL', KEYS[1])} end
end
redis.call('SET', KEYS[2], string.format('%d', mine))
redis.call('SET', KEYS[1], cjson.encode({leader_id=ARGV[1], epoch=mine, address=ARGV[2]}), 'PX', ARGV[4])
return {1, '', 0}
"""

_RELEASE = """
local held = redis.call('GET', KEYS[1])
if not held then return 0 end
local lease = cjson.decode(held)
if lease.leader_id ~= ARGV[1] or lease.epoch ~= tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], cjson.encode({leader_id='', epoch=lease.epoch, address=''}), 'PX', ARGV[3])
return 1
"""

_OBSERVE = """
return {redis.call('GET', KEYS[1]) or '', redis.call('PTTL', KEYS[1]), redis.call('GET', KEYS[2]) or '0'}
"""


class LeaderLease:
    """Every method raises RedisAway where Redis does not answer."""

    def __init__(self, redis: RedisAccess, leader_id: str, lease_us: int) -> None:
        self._redis = redis
        self._leader_id = leader_id
        self._lease_ms = lease_us // 1_000
        self._keys = (f"{redis.prefix}leader", f"{redis.prefix}epoch")

    async def observe(self) -> tuple[Lease | None, int]:
        """The lease, if there is one, and the counter of epochs."""
        held, remaining_ms, counter = await self._script(_OBSERVE)
        return _lease(held, remaining_ms), int(counter)

    async def acquire(self, address: str, floor: int) -> tuple[int, Lease | None]:
        """The new epoch, or 0 and the lease that is in the way."""
        epoch, held, remaining_ms = await self._script(_ACQUIRE, self._leader_id, address, floor, self._lease_ms)
        return int(epoch), _lease(held, remaining_ms)

    async def renew(self, address: str, epoch: int) -> tuple[bool, Lease | None]:
        """True, or False and the lease of a later leader if one is alive."""
        kept, held, remaining_ms = await self._script(_RENEW, self._leader_id, address, epoch, self._lease_ms)
        return bool(kept), _lease(held, remaining_ms)

    async def release(self, epoch: int) -> bool:
        """Leaves a lease that anybody may take at once; False, and nothing happens, where it is no longer ours."""
        return bool(await self._script(_RELEASE, self._leader_id, epoch, self._lease_ms))

    async def _script(self, script: str, *arguments: str | int) -> Any:
        async def run(client: Any) -> Any:
            result: Any = await client.eval(script, len(self._keys), *self._keys, *arguments)
            return result

        return await self._redis.call(run)


def _lease(held: bytes | str, remaining_ms: int) -> Lease | None:
    if not held:
        return None
    record = json.loads(held)
    return Lease(record["leader_id"], int(record["epoch"]), record["address"], max(0, int(remaining_ms)) * 1_000)
