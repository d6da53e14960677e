"""The life of a gRPC server process: listen, say healthy, serve until a signal, drain, stop."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hyperflexis.common.v1 import info_service_pb2, info_service_pb2_grpc
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.channel import SERVER_OPTIONS, open_channel
from hyperflexis_common.clock import Clock, SystemClock
from hyperflexis_common.first_message import FirstMessage

log = structlog.get_logger(__name__)


class Info(info_service_pb2_grpc.InfoServiceServicer):
    """Who is this, which version, which features."""

    def __init__(
        self, service: str, instance_id: str, features: Sequence[str] = (), clock: Clock | None = None
    ) -> None:
        self._service = service
        self._instance_id = instance_id
        self._features = tuple(features)
        self._clock = clock or SystemClock()
        self._started_us = self._clock.now_us()

    async def GetServerInfo(
        self, request: info_service_pb2.GetServerInfoRequest, context: Any
    ) -> info_service_pb2.GetServerInfoResponse:
        return info_service_pb2.GetServerInfoResponse(
            service=self._service,
            version=version_of(self._service),
            protocol_version=PROTOCOL_VERSION,
            features=self._features,
            instance_id=self._instance_id,
            uptime_us=self._clock.now_us() - self._started_us,
        )


def version_of(service: str) -> str:
    """The version of an installed service distribution."""
    try:
        return importlib.metadata.version(f"hyperflexis-{service}")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


class ServiceServer:
    """A grpc.aio server with health, reflection and GetServerInfo."""

    def __init__(self, listen: str, info: Info, service_names: Sequence[str]) -> None:
        self.listen = listen
        self.port = 0
        self.grpc = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[FirstMessage()])
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        info_service_pb2_grpc.add_InfoServiceServicer_to_server(info, self.grpc)
        names = (*service_names, "hyperflexis.common.v1.InfoService", health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.grpc)

    def bind(self) -> int:
        """Takes the port without serving yet. Raises RuntimeError where the address cannot be bound."""
        if self.port == 0:
            self.port = self.grpc.add_insecure_port(self.listen)
        return self.port

    async def start(self) -> int:
        """Binds and serves; returns the port. Raises RuntimeError where the address cannot be bound."""
        self.bind()
        await self.grpc.start()
        await self.set_healthy(True)
        return self.port

    async def set_healthy(self, healthy: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if healthy else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", status)

    async def stop(self, grace_s: float) -> None:
        await self.set_healthy(False)
        await self.grpc.stop(grace_s)


async def check_health(address: str, timeout_s: float = 2.0) -> bool:
    """The container health check: is the server at host:port serving?"""
    async with open_channel(address) as channel:
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)  # type: ignore[attr-defined]
        except grpc.aio.AioRpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def wait_for_signal() -> None:
    """Returns at the first SIGINT or SIGTERM. A second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def on_signal() -> None:
        if stopping.is_set():
            os._exit(130)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    await stopping.wait()


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a service's main coroutine on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())


def advertised(listen: str, port: int, advertise: str) -> str:
    """The address others dial: `advertise` if given (":port" keeps its host), else the one listened on."""
    if advertise:
        return advertise if advertise.rpartition(":")[2].isdigit() else f"{advertise}:{port}"
    host = listen.rpartition(":")[0]
    return f"{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}"


INSIST_S = 5.0
"""Between two cancellations of one task: long enough for it to put its things in order."""


async def cancel_all(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancels tasks and waits until each has ended. Libraries may forget a cancellation (before Python 3.12, every
    asyncio.wait_for that ends just then): so whoever goes on is cancelled again."""
    live = {task for task in tasks if task is not None}
    while live:
        for task in live:
            task.cancel()
        done, live = await asyncio.wait(live, timeout=INSIST_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # seen: it is nobody's any more


def supervise(coroutine: Coroutine[Any, Any, None], name: str, on_failure: Callable[[], None]) -> asyncio.Task[None]:
    """A background task whose failure is logged and reported, never silent."""

    async def guarded() -> None:
        try:
            await coroutine
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("background task failed", task=name)
            on_failure()

    task = asyncio.create_task(guarded(), name=name)
    # One that is cancelled before its first step never gets to await the coroutine.
    task.add_done_callback(lambda _: coroutine.close())
    return task
