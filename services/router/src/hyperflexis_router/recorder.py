"""Keeps Redis up to date: one pipeline of journal writes per 50 ms, a touch each second, and catching up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import structlog

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis_common.redis_access import RedisAway, RedisError
from hyperflexis_common.tokens import TOKEN_BYTES
from hyperflexis_router.faults import Faults
from hyperflexis_router.live import LiveRequest
from hyperflexis_router.metrics import JOURNAL_LAG
from hyperflexis_router.store import MISSING, OTHER_OWNER, Command, OwnershipLost, RequestStore
from hyperflexis_router.switchboard import Switchboard

log = structlog.get_logger(__name__)

FLUSH_S = 0.05
TOUCH_S = 1.0
BATCH = 256
BATCH_BYTES = 2**20
"""Requests, and about so many bytes, in one pipeline: one that Redis cannot take in time would never end."""
PENDING_LIMIT = 16_384
"""Ended requests whose record waits for Redis; beyond it the oldest stay as Redis has them."""


class Recorder:
    """Writes what is dirty, finds out what is lost. Nothing here makes a request wait."""

    def __init__(self, store: RequestStore, board: Switchboard, faults: Faults) -> None:
        self._store = store
        self._board = board
        self._faults = faults
        self._dirty: dict[str, LiveRequest] = {}
        """Running requests: as many as the router admits."""
        self._ended: dict[str, LiveRequest] = {}

    def dirty(self, live: LiveRequest) -> None:
        """Something of it is to be written at the next flush."""
        if live.finished is None:
            self._dirty[live.request_id] = live
            return
        self._dirty.pop(live.request_id, None)
        self._ended[live.request_id] = live
        if len(self._ended) > PENDING_LIMIT:
            oldest = next(iter(self._ended))
            self._close(self._ended.pop(oldest))

    def not_durable(self, live: LiveRequest) -> None:
        """Redis did not take it: its client is told, and it is written when Redis is back."""
        self.dirty(live)
        if not live.not_durable_told and live.finished is None:
            live.not_durable_told = True
            notice = inference_service_pb2.Notice(
                kind=inference_service_pb2.Notice.KIND_NOT_DURABLE,
                message="Redis does not answer: until it does, the request does not survive this router",
            )
            self._board.notice(live.request_id, notice)

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        touch_at = loop.time() + TOUCH_S
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()
            if loop.time() >= touch_at:
                touch_at = loop.time() + TOUCH_S
                await self.touch()

    async def flush(self) -> None:
        """Writes everything that is dirty now; what Redis does not take stays dirty."""
        waiting = [*self._dirty.values(), *self._ended.values()]
        JOURNAL_LAG.set(sum(max(0, live.committed_tokens - live.journaled) for live in waiting))
        start = 0
        while start < len(waiting):
            batch = _batch(waiting, start)
            for live in batch:
                self._dirty.pop(live.request_id, None)
                self._ended.pop(live.request_id, None)
            try:
                await self._write(batch)
            except RedisAway:
                self._wait_for_redis(waiting[start:])
                return
            except RedisError:
                log.exception("Redis refused a journal write")
                self._wait_for_redis(waiting[start:])
                return
            start += len(batch)

    async def touch(self) -> None:
        """Keeps the records alive, and hears of requests that other routers have taken."""
        held = [live for live in self._board.live() if live.recorded]
        for start in range(0, len(held), BATCH):
            batch = held[start : start + BATCH]
            commands = [self._store.touch(live.new, live.origin, live.state) for live in batch]
            try:
                answers = await self._store.run(commands)
            except (RedisAway, RedisError):
                return
            for live, answer in zip(batch, answers, strict=True):
                await self._heed(live, answer)

    async def release_all(self) -> None:
        """The router stops: what still runs is written down, for others to resume."""
        held = list(self._board.live())
        for live in held:
            self.dirty(live)
        await self.flush()
        commands = [self._store.touch(live.new, live.origin, "detached") for live in held if live.recorded]
        for start in range(0, len(commands), BATCH):
            try:
                await self._store.run(commands[start : start + BATCH])
            except (RedisAway, RedisError):
                return

    async def _write(self, batch: list[LiveRequest]) -> None:
        commands: list[Command] = []
        writes: list[tuple[LiveRequest, str, int]] = []
        for live in batch:
            if live.released:
                continue
            request_id, gen, tokens = live.request_id, live.new.owner_gen, live.committed_tokens
            if not live.recorded:
                age_us = self._board.clock.now_us() - live.new.received_us
                commands.append(self._store.create(live.new, live.origin, age_us, with_key=live.keyed))
                writes.append((live, "create", 0))
            if live.downgraded and not live.downgrade_recorded:
                commands.append(self._store.downgrade(request_id, gen, live.slo))
                writes.append((live, "downgrade", 0))
            if tokens > live.journaled:
                packed = bytes(live.packed[live.journaled * TOKEN_BYTES :])
                commands.append(self._store.append(request_id, gen, live.journaled, packed, live.measured.first_us))
                writes.append((live, "append", tokens))
            if live.finished is not None:
                commands.append(self._store.finish(request_id, gen, live.finished, live.new.tenant, live.origin))
                writes.append((live, "finish", 0))
        if not commands:
            return
        contested: list[LiveRequest] = []
        for (live, kind, tokens), answer in zip(writes, await self._store.run(commands), strict=True):
            if kind == "create":
                if answer[0] == b"lost" and live.begun_again:
                    contested.append(live)
                else:
                    self._created(live, answer)
            elif live in contested:
                continue  # the answer is about the record of an older owner
            elif await self._heed(live, answer):
                if kind == "downgrade":
                    live.downgrade_recorded = True
                elif kind == "append":
                    live.journaled = tokens
                    self._faults.passed("journaled")
                else:
                    self._close(live)
        for live in contested:
            await self._reclaim(live)

    def _created(self, live: LiveRequest, answer: list[bytes]) -> None:
        if answer[0] == b"lost":
            self._board.release(live)
        elif answer[0] == b"held":
            # While Redis was away somebody used the key again: this request goes on without it.
            live.keyed = False
            self.dirty(live)
        else:
            live.recorded = True

    async def _reclaim(self, live: LiveRequest) -> None:
        """Its client brought the request here while Redis was away, and Redis is back with another owner's record: that
        of an older one, or of a newer one, to which the client went on from here."""
        self.dirty(live)
        if live.client is None and not live.delivered:
            # Nobody has read its end here: the client may be elsewhere, and may come back until the grace is over.
            if live.finished is not None:
                self._board.release(live)
            return
        record = await self._store.read(live.request_id)
        if record is None:
            return
        if record.finished is not None:
            # The grace of a stream that had broken there is over, and its router could not hear that it went on here.
            await self._store.run([self._store.discard(live.request_id, record.owner_gen)])
            live.journaled = 0
            return
        try:
            adopted = await self._store.adopt(
                live.request_id, record.owner_gen, live.new.owner_gen, 0, bytes(live.packed)
            )
        except OwnershipLost:
            adopted = record
        if adopted is not None and adopted.owner_gen == live.new.owner_gen:
            live.recorded, live.journaled = True, 0
        elif adopted is not None:
            log.info("another router has taken the request", request_id=live.request_id)
            self._board.release(live)

    async def _heed(self, live: LiveRequest, answer: int) -> bool:
        """What a fenced write tells; False = it did not happen."""
        if answer == OTHER_OWNER:
            await self._let_go(live)
        elif answer == MISSING:
            # Redis has restarted empty, or without its last second: write all of it again.
            live.recorded, live.journaled = False, 0
            self.dirty(live)
        return answer not in (OTHER_OWNER, MISSING)

    async def _let_go(self, live: LiveRequest) -> None:
        """Another router has taken it: to go on with it, or to end it."""
        log.info("another router has taken the request", request_id=live.request_id)
        record = None
        if live.finished is None:
            with contextlib.suppress(RedisAway, RedisError):
                record = await self._store.read(live.request_id)
        end = record.finished if record is not None else None
        if end is not None and end.reason == sampling_pb2.FINISH_REASON_CANCELLED:
            self._board.cancelled_elsewhere(live, end.message)
        else:
            self._board.release(live)

    def _wait_for_redis(self, unwritten: Iterable[LiveRequest]) -> None:
        for live in unwritten:
            if live.released:
                continue
            self.not_durable(live)
            if live.finished is not None:
                # Its worker need not wait for Redis.
                self._board.record_closed(live)

    def _close(self, live: LiveRequest) -> None:
        live.close()
        self._board.record_closed(live)


def _batch(waiting: list[LiveRequest], start: int) -> list[LiveRequest]:
    """The next ones to write: at least one."""
    size, end = 0, start
    while end < len(waiting) and end - start < BATCH and (size < BATCH_BYTES or end == start):
        size += waiting[end].unwritten_bytes
        end += 1
    return waiting[start:end]
