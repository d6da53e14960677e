"""Schedulers over real gRPC and a real Redis, and the streams of a fake router and a fake worker."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import grpc.aio
from prometheus_client import CollectorRegistry
from redis_server import RedisServer

from hyperflexis.common.v1 import capability_pb2, identity_pb2, slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from hyperflexis_common.channel import open_channel
from hyperflexis_common.config import RedisSettings
from hyperflexis_scheduler.app import SchedulerApp
from hyperflexis_scheduler.config import SchedulerSettings

LEASE_MS = 900


class Stream:
    """The client side of one session: answers pings, keeps the rest until it is expected."""

    def __init__(self, address: str, method: str) -> None:
        self.channel = open_channel(address)
        self.call = getattr(SchedulerServiceStub(self.channel), method)()
        self.epoch = 0
        self.kind = rs.RouterSessionRequest if method == "RouterSession" else ws.WorkerSessionRequest
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._writing = asyncio.Lock()
        self._pump = asyncio.create_task(self._read())

    async def send(self, **message: Any) -> None:
        async with self._writing:
            await self.call.write(self.kind(**message))

    async def expect(self, kind: str) -> Any:
        """The next message of this kind; others are passed over."""
        async with asyncio.timeout(10):
            while True:
                message = await self._inbox.get()
                assert message is not None, f"stream ended before {kind}"
                if message.WhichOneof("message") == kind:
                    self.epoch = message.epoch
                    return getattr(message, kind)

    async def ended(self) -> grpc.StatusCode:
        async with asyncio.timeout(10):
            await self._pump
            code: grpc.StatusCode = await self.call.code()
            return code

    async def close(self) -> None:
        self._pump.cancel()
        self.call.cancel()
        await self.channel.close()

    async def _read(self) -> None:
        try:
            while (message := await self.call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("message") == "ping":
                    await self.send(pong=rs.Pong(id=message.ping.id))
                else:
                    self._inbox.put_nowait(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        finally:
            self._inbox.put_nowait(None)


class RouterStream(Stream):
    def __init__(self, address: str) -> None:
        super().__init__(address, "RouterSession")

    async def hello(self) -> None:
        hello = rs.RouterHello(router_id="r1", incarnation=1, protocol_version=1)
        await self.send(hello=hello)

    async def submit(self, request_id: str, **fields: Any) -> None:
        slo = slo_pb2.Slo(tier="chat", ttft_us=1_000_000, tpot_us=50_000, on_violation=slo_pb2.ON_VIOLATION_BEST_EFFORT)
        submit = rs.Submit(request_id=request_id, model="m", prompt_tokens=10, max_tokens=5, slo=slo, **fields)
        await self.send(submit=submit)


class WorkerStream(Stream):
    def __init__(self, address: str) -> None:
        super().__init__(address, "WorkerSession")

    async def register(self, *held: ws.RequestStatus, incarnation: int = 1) -> None:
        register = ws.Register(
            identity=identity_pb2.WorkerIdentity(worker_id="w1", incarnation=incarnation),
            protocol_version=1,
            address="127.0.0.1:1",
            model="m",
            fingerprint=b"f",
            capabilities=capability_pb2.EngineCapabilities(context_length=100),
            role=capability_pb2.ROLE_MIXED,
            readiness=capability_pb2.READINESS_READY,
        )
        await self.send(register=register)
        await self.expect("registered")
        await self.send(snapshot=ws.Snapshot(requests=held))


class Cluster:
    """Schedulers of one test, and everything to stop afterwards."""

    def __init__(self, redis: RedisServer, prefix: str) -> None:
        self.redis = redis
        self._settings = RedisSettings(url=redis.url, prefix=prefix)
        self.apps: list[SchedulerApp] = []
        self.streams: list[Stream] = []
        self.registry = CollectorRegistry()

    async def scheduler(self, leads: bool = True) -> SchedulerApp:
        registry = CollectorRegistry()
        settings = SchedulerSettings(listen="127.0.0.1:0", redis=self._settings, lease_ms=LEASE_MS)
        app = SchedulerApp(settings, registry=registry)
        self.registry = registry
        await app.start()
        self.apps.append(app)
        if leads:
            await self.until(lambda: app._core.cell is not None, 5)
        return app

    async def until(self, condition: Any, limit_s: float) -> float:
        """Waits for a condition; returns how long it took."""
        started = time.monotonic()
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.01)
        return time.monotonic() - started

    def router(self, app: SchedulerApp) -> RouterStream:
        stream = RouterStream(app.address)
        self.streams.append(stream)
        return stream

    def worker(self, app: SchedulerApp) -> WorkerStream:
        stream = WorkerStream(app.address)
        self.streams.append(stream)
        return stream

    def stub(self, app: SchedulerApp) -> SchedulerServiceStub:
        return SchedulerServiceStub(self.router(app).channel)

    async def kill(self, app: SchedulerApp) -> None:
        self.apps.remove(app)
        await app.kill()

    async def stop(self, app: SchedulerApp) -> None:
        self.apps.remove(app)
        await app.stop()

    async def close(self) -> None:
        for stream in self.streams:
            await stream.close()
        for app in list(self.apps):
            await self.kill(app)
