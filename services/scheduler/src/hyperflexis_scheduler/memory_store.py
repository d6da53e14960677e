"""The memory of leaders in Redis: one hash of all workers, and the highest epoch of a scaler that has acted.

One hash, because it is read whole at each change of the leader, next to any number of requests' keys. A field has no
time to live of its own there, so each value begins with the time by Redis' clock at which it was written: only ages
leave this module, and whatever is too old is ignored and removed.
"""

from __future__ import annotations

import json
from typing import Any

import structlog

from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.redis_access import RedisAccess
from hyperflexis_scheduler.core.memory import Memory, WorkerRecord

log = structlog.get_logger(__name__)

BATCH = 500
"""Records a script writes: it holds up everybody else."""

_WRITE = """
if tonumber(redis.call('GET', KEYS[3]) or '0') > tonumber(ARGV[1]) then return 0 end
local time = redis.call('TIME')
local now_ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], now_ms .. ' ' .. ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
local acted = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') or 0, tonumber(ARGV[2]))
if acted > 0 then redis.call('SET', KEYS[2], string.format('%.0f', acted), 'PX', ARGV[3]) end
return 1
"""

# What was read counts, though Redis may take no writes now.
_READ = """
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local all, found = redis.call('HGETALL', KEYS[1]), {redis.call('GET', KEYS[2]) or '0'}
for i = 1, #all, 2 do
  local written_ms, record = string.match(all[i + 1], '^(%d+) (.*)$')
  local age_ms = written_ms and now_ms - tonumber(written_ms)
  if age_ms and age_ms < tonumber(ARGV[1]) then
    found[#found + 1], found[#found + 2], found[#found + 3] = all[i], math.max(0, age_ms), record
  else redis.pcall('HDEL', KEYS[1], all[i]) end
end
return found
"""


class MemoryStore:
    """Every method raises RedisAway where Redis does not answer."""

    def __init__(self, redis: RedisAccess, keep_us: int) -> None:
        self._redis = redis
        self._keep_ms = keep_us // 1_000
        self._keys = (f"{redis.prefix}workers", f"{redis.prefix}acted_epoch", f"{redis.prefix}epoch")

    async def write(self, epoch: int, memory: Memory) -> bool:
        """As the leader of `epoch`. False and nothing written where a later one has been elected."""
        records = [text for record in memory.workers for text in (record.key.worker_id, _encode(record))]
        batches = [records[at : at + 2 * BATCH] for at in range(0, len(records), 2 * BATCH)] or [[]]

        async def write(client: Any) -> bool:
            async with client.pipeline(transaction=False) as pipeline:
                for batch in batches:
                    pipeline.eval(
                        _WRITE, len(self._keys), *self._keys, epoch, memory.scaler_epoch, self._keep_ms, *batch
                    )
                return all(await pipeline.execute())

        return await self._redis.call(write)

    async def read(self) -> Memory:
        """What is there. A record that cannot be read is skipped, one that is too old is removed."""

        async def read(client: Any) -> Any:
            return await client.eval(_READ, 2, *self._keys[:2], self._keep_ms)

        acted, *fields = await self._redis.call(read)
        records = [_decode(*fields[at : at + 3]) for at in range(0, len(fields), 3)]
        return Memory(tuple(record for record in records if record is not None), int(acted) if acted.isdigit() else 0)


def _encode(record: WorkerRecord) -> str:
    return json.dumps(
        {
            "incarnation": record.key.incarnation,
            "address": record.address,
            "model": record.model,
            "fingerprint": record.fingerprint.hex(),
            "retired": list(record.retired),
        }
    )


def _decode(worker_id: bytes, age_ms: int, text: bytes) -> WorkerRecord | None:
    """None for one of another version, or nonsense: a leader without it is better than no leader."""
    try:
        record = json.loads(text)
        return WorkerRecord(
            key=WorkerKey(worker_id.decode(), int(record["incarnation"])),
            address=str(record["address"]),
            model=str(record["model"]),
            fingerprint=bytes.fromhex(record["fingerprint"]),
            retired=tuple(int(incarnation) for incarnation in record["retired"]),
            age_us=age_ms * 1_000,
        )
    except (ValueError, KeyError, TypeError) as error:
        log.warning("worker record skipped", worker_id=worker_id, error=f"{type(error).__name__}: {error}")
        return None
