"""What a scaler leaves in Redis for the one after it: intents and targets. Only the leader writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import structlog

from hyperflexis_common.redis_access import RedisAccess, RedisAway, RedisError
from hyperflexis_scaler.core.action import Intent
from hyperflexis_scaler.lease import Term

log = structlog.get_logger(__name__)

WRITE = """
local holder = redis.call('HMGET', KEYS[1], 'leader_id', 'epoch')
if holder[1] ~= ARGV[1] or tonumber(holder[2]) ~= tonumber(ARGV[2]) then return 0 end
redis.call(ARGV[3], KEYS[2], unpack(ARGV, 4))
return 1
"""


class NotRecorded(Exception):
    """Redis is away, or another scaler leads: what was to be recorded must not be done."""


class FleetLog:
    """`scaler:intents` (by action id) and `scaler:targets` (by group)."""

    def __init__(self, redis: RedisAccess) -> None:
        self._redis = redis
        self._leader = f"{redis.prefix}scaler:leader"
        self._intents = f"{redis.prefix}scaler:intents"
        self._targets = f"{redis.prefix}scaler:targets"

    async def record(self, term: Term, intents: Iterable[Intent]) -> None:
        """All of them or none. Raises NotRecorded; then they may be there all the same."""
        fields = [field for intent in intents for field in (intent.action_id, intent.to_json())]
        if fields:
            await self._write(term, "HSET", self._intents, fields)

    async def forget(self, term: Term, action_ids: Iterable[str]) -> None:
        """Raises NotRecorded."""
        ids = list(action_ids)
        if ids:
            await self._write(term, "HDEL", self._intents, ids)

    async def intents(self) -> list[Intent]:
        """Raises NotRecorded."""
        found = []
        for action_id, text in (await self._read(self._intents)).items():
            try:
                found.append(Intent.from_json(text))
            except ValueError as error:
                log.warning("intent not understood", action_id=action_id.decode(), error=str(error))
        return found

    async def save_target(self, term: Term, group: str, target: int, configured: int) -> None:
        """Raises NotRecorded."""
        await self._write(term, "HSET", self._targets, [group, json.dumps([target, configured])])

    async def targets(self) -> dict[str, tuple[int, int]]:
        """By group: the target set, and the configured one that it replaced. Raises NotRecorded."""
        found = {}
        for group, text in (await self._read(self._targets)).items():
            target, configured = json.loads(text)
            found[group.decode()] = (int(target), int(configured))
        return found

    async def _write(self, term: Term, command: str, key: str, values: list[str] | list[str | int]) -> None:
        arguments = (self._leader, key, term.leader_id, term.epoch, command, *values)
        try:
            written = await self._redis.call(lambda client: client.eval(WRITE, 2, *arguments))
        except (RedisAway, RedisError) as error:
            raise NotRecorded(f"Redis is away: {error}") from error
        if not written:
            raise NotRecorded("another scaler leads")

    async def _read(self, key: str) -> dict[bytes, bytes]:
        try:
            found: Any = await self._redis.call(lambda client: client.hgetall(key))
        except (RedisAway, RedisError) as error:
            raise NotRecorded(f"Redis is away: {error}") from error
        return dict(found)
