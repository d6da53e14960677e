"""Redis with a short temper: small timeouts, no blind retries, a breaker.

Requests go on while Redis is away, so a call to it may fail fast but never hang. Nothing is retried here:
a lost reply to a write is only safe to repeat where the write is idempotent, and only its caller knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from hyperflexis_common.clock import Clock
from hyperflexis_common.config import RedisSettings

Result = TypeVar("Result")


class RedisAway(Exception):
    """Redis did not answer, or is being left alone for a moment after it did not."""


class RedisAccess:
    """One Redis client of a process, behind a breaker that opens after a failure for `cooldown_us`."""

    def __init__(self, settings: RedisSettings, clock: Clock, cooldown_us: int = 500_000) -> None:
        timeout_s = settings.timeout_ms / 1_000
        self.prefix = settings.prefix
        self._clock = clock
        self._cooldown_us = cooldown_us
        self._retry_at_us = 0
        self._timeout_s = timeout_s
        self.client = redis.from_url(
            settings.url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=32,
        )

    @property
    def away(self) -> bool:
        """The breaker is open."""
        return self._clock.now_us() < self._retry_at_us

    async def call(self, operation: Callable[[redis.Redis], Awaitable[Result]]) -> Result:
        """Runs one operation. Raises RedisAway on any connection trouble or time-out.

        A RedisError that Redis itself answered (a wrong script, wrong type) passes through: it is a bug.
        """
        if self.away:
            raise RedisAway("Redis failed a moment ago")
        try:
            async with asyncio.timeout(self._timeout_s * 2):
                return await operation(self.client)
        except (redis.ConnectionError, redis.TimeoutError, TimeoutError, OSError) as error:
            self._retry_at_us = self._clock.now_us() + self._cooldown_us
            raise RedisAway(type(error).__name__) from error

    async def close(self) -> None:
        await self.client.aclose()


__all__ = ["RedisAccess", "RedisAway", "RedisError"]
