"""Redis with a short temper: small timeouts, no blind retries, a breaker.

Requests go on while Redis is away, so a call to it may fail fast but never hang. Nothing is retried here:
a lost reply to a write is only safe to repeat where the write is idempotent, and only its caller knows.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from hyperflexis_common.clock import Clock
from hyperflexis_common.config import RedisSettings

Result = TypeVar("Result")


CONNECTIONS = 32
"""Calls under way at once; more wait for a place."""
SLOWEST_BYTES_S = 10e6
"""Slower than this is away."""
UNABLE = re.compile(r"\b(OOM|READONLY|MISCONF|LOADING|BUSY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOREPLICAS|UNBLOCKED)\b")
"""Error replies of a Redis that cannot serve: full, a replica now, its disk gone, starting, failing over."""


class RedisAway(Exception):
    """Redis did not answer, cannot serve, or is being left alone for a moment after that."""


class RedisAccess:
    """One Redis client of a process, behind a breaker that opens after a failure for `cooldown_us`."""

    def __init__(self, settings: RedisSettings, clock: Clock, cooldown_us: int = 500_000) -> None:
        timeout_s = settings.timeout_ms / 1_000
        self.prefix = settings.prefix
        self._clock = clock
        self._cooldown_us = cooldown_us
        self._retry_at_us = 0
        self._timeout_s = timeout_s
        self._places = asyncio.Semaphore(CONNECTIONS)
        self.client = redis.from_url(
            settings.url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=CONNECTIONS,
        )

    @property
    def away(self) -> bool:
        """The breaker is open."""
        return self._clock.now_us() < self._retry_at_us

    def limit_s(self, size: int) -> float:
        """For an operation that moves so many bytes: what a small one may take, and time for the bytes."""
        return self._timeout_s * 2 + size / SLOWEST_BYTES_S

    async def call(self, operation: Callable[[redis.Redis], Awaitable[Result]], limit_s: float | None = None) -> Result:
        """Runs one operation, which uses one connection at a time. `limit_s`: where it is known to be a large one.

        Raises RedisAway on connection trouble, on a time-out, and where Redis answers that it cannot serve. Any other
        error reply (a wrong script, wrong type) passes through: it is a bug.
        """
        task = asyncio.current_task()
        assert task is not None
        asked_before = task.cancelling()
        try:
            return await self._call(operation, limit_s)
        finally:
            # redis-py writes under asyncio.wait_for, which before Python 3.12 forgets a cancellation that comes in the
            # moment in which the write is done. The task remembers it.
            if task.cancelling() > asked_before:
                raise asyncio.CancelledError

    async def _call(self, operation: Callable[[redis.Redis], Awaitable[Result]], limit_s: float | None) -> Result:
        if self.away:
            raise RedisAway("Redis failed a moment ago")
        try:
            async with asyncio.timeout(self._timeout_s * 2):
                await self._places.acquire()
        except TimeoutError as error:
            # A crowd of our own says nothing about Redis: the breaker stays closed.
            raise RedisAway(f"{CONNECTIONS} calls are under way already") from error
        try:
            async with asyncio.timeout(limit_s or self._timeout_s * 2):
                return await operation(self.client)
        except (redis.ConnectionError, redis.TimeoutError, TimeoutError, OSError) as error:
            raise self._open(type(error).__name__) from error
        except RedisError as error:
            if not UNABLE.search(str(error)):
                raise
            raise self._open(str(error)[:80]) from error
        finally:
            self._places.release()

    def _open(self, reason: str) -> RedisAway:
        self._retry_at_us = self._clock.now_us() + self._cooldown_us
        return RedisAway(reason)

    async def close(self) -> None:
        await self.client.aclose()


__all__ = ["RedisAccess", "RedisAway", "RedisError"]
