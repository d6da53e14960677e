"""Keeps the leader's memory in Redis up to date, and fetches what the leader before left."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from hyperflexis_common.redis_access import RedisAway
from hyperflexis_scheduler.core.memory import Memory
from hyperflexis_scheduler.desk import Desk
from hyperflexis_scheduler.memory_store import MemoryStore

log = structlog.get_logger(__name__)

PERIOD_S = 1.0
SPACING_S = 0.05
"""Between two writes, where there is always something new: a fleet that starts."""
TIDY_EVERY = 600
"""Writes between two readings: a reading removes what has become too old."""


class MemoryKeeper:
    """In the background: decisions never wait for Redis."""

    def __init__(self, store: MemoryStore, desk: Desk) -> None:
        self._store = store
        self._desk = desk
        self._due = asyncio.Event()
        self._trouble = ""
        self._writes = 0
        desk.on_remember = self._due.set

    async def read(self) -> Memory | None:
        """None where it cannot be had: a leader without it is better than none, and `run` brings it later."""
        try:
            return await self._store.read()
        except Exception as error:
            log.warning("leading without what the leader before left", error=f"{type(error).__name__}: {error}")
            return None

    async def run(self, may_act: Callable[[], bool]) -> None:
        """Writes each second, and at once where a crash must not come first. Until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD_S):
                    await self._due.wait()
            self._due.clear()
            if may_act():
                await self._keep()
            await asyncio.sleep(SPACING_S)

    async def _keep(self) -> None:
        trouble = ""
        try:
            await self._exchange()
        except RedisAway:
            log.debug("memory not written: redis is away")
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
            if trouble != self._trouble:
                log.warning("memory not written; it is tried again each second", error=trouble)
        self._trouble = trouble

    async def _exchange(self) -> None:
        """Nothing is written over what was never read."""
        core = self._desk.core
        cell = core.cell
        if cell is None:
            return
        if not cell.remembers or self._writes % TIDY_EVERY == TIDY_EVERY - 1:
            memory = await self._store.read()
            if core.cell is not cell:
                return
            if not cell.remembers:
                self._desk.do(core.learn, memory)
        self._writes += 1
        await self._store.write(cell.fence.epoch, core.memory())
