"""The worker's session with the scheduler that leads: find it, register, go on, find the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import grpc.aio
import structlog

from hyperflexis.scheduler.v1 import scheduler_service_pb2_grpc, worker_session_pb2
from hyperflexis_common.channel import open_channel
from hyperflexis_common.clock import Clock
from hyperflexis_common.outbox import Outbox, OutboxFull
from hyperflexis_worker.core.effects import Effect
from hyperflexis_worker.core.worker import WorkerCore

log = structlog.get_logger(__name__)

SILENCE_S = 3.0
"""A scheduler pings each second; one that says nothing for this long is left."""
BACKOFF_S = (0.1, 0.1, 0.2, 0.5, 1.0)


class SchedulerLink:
    def __init__(
        self, schedulers: list[str], core: WorkerCore, apply: Callable[[Iterable[Effect]], None], clock: Clock
    ) -> None:
        self._schedulers = schedulers
        self._core = core
        self._apply = apply
        self._clock = clock
        self._outbox: Outbox[worker_session_pb2.WorkerSessionRequest] | None = None
        self._dropped = ""
        self._hint = ""
        self._registered = False

    def send(self, message: worker_session_pb2.WorkerSessionRequest) -> None:
        """To the current session; dropped where there is none (its successor begins with a Snapshot)."""
        if self._outbox is not None:
            try:
                self._outbox.put(message)
            except OutboxFull as error:
                self.drop(str(error))

    def drop(self, reason: str) -> None:
        """Ends the current session; the next one starts after a short wait."""
        self._dropped = reason
        if self._outbox is not None:
            self._outbox.close()

    async def run_forever(self) -> None:
        failures = at = 0
        while True:
            registered = await self._session(self._schedulers[at % len(self._schedulers)])
            if self._hint:
                # Where a hint leads, another is not followed: standbys may name each other while a third one leads.
                registered = await self._session(self._hint)
            failures = 0 if registered else failures + 1
            at += 1
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    async def _session(self, address: str) -> bool:
        """One session, to its end. True if this worker was registered in it."""
        outbox = self._outbox = Outbox[worker_session_pb2.WorkerSessionRequest]()
        outbox.put(self._core.register_message())
        self._dropped = self._hint = ""
        self._registered = False
        async with open_channel(address) as channel:
            call = scheduler_service_pb2_grpc.SchedulerServiceStub(channel).WorkerSession(aiter(outbox))
            try:
                await self._read(call, address)
            except grpc.aio.AioRpcError as error:
                self._dropped = self._dropped or f"{error.code().name}: {error.details()}"
            except TimeoutError:
                self._dropped = f"silent for {SILENCE_S} s"
            finally:
                outbox.close()
                call.cancel()
                self._outbox = None
                self._apply(self._core.scheduler_closed(self._clock.now_us()))
        if self._registered:
            log.warning("session with the scheduler ended", scheduler=address, reason=self._dropped or "closed")
        return self._registered

    async def _read(
        self,
        call: grpc.aio.StreamStreamCall[
            worker_session_pb2.WorkerSessionRequest, worker_session_pb2.WorkerSessionResponse
        ],
        address: str,
    ) -> None:
        while not self._dropped:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the message.
            async with asyncio.timeout(SILENCE_S):
                message = await call.read()
            if message is grpc.aio.EOF:
                break
            assert isinstance(message, worker_session_pb2.WorkerSessionResponse)
            kind = message.WhichOneof("message")
            if kind == "not_leader":
                hint = message.not_leader.leader_address
                self._hint = hint if hint != address else ""
                break
            self._apply(self._core.scheduler_message(message, self._clock.now_us()))
            if kind == "registered" and self._core.connected:
                self._registered = True
                log.info("registered", scheduler=address, epoch=message.registered.fence.epoch)
