"""A Redis, a fake cell, and routers in front of it; a router's core with two workers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from redis_server import RedisServer
from router_core_rig import OUTPUT, A, B, bind, committed, down, new_request, placed, step
from router_fakes import Cell, FakeScheduler, FakeWorker
from router_rig import MakeRouter, Router
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.router.v1 import inference_service_pb2_grpc
from hyperflexis.scheduler.v1 import router_session_pb2 as session_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2_grpc
from hyperflexis.worker.v1 import worker_service_pb2_grpc
from hyperflexis_common.channel import SERVER_OPTIONS, open_channel
from hyperflexis_common.config import ModelSettings, RedisSettings
from hyperflexis_router.app import RouterApp
from hyperflexis_router.config import RouterSettings
from hyperflexis_router.core.effects import OpenFeed
from hyperflexis_router.core.router import RouterCore
from hyperflexis_router.faults import Faults


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """One of the test's own, to be killed."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def cell() -> AsyncIterator[Cell]:
    worker = FakeWorker()
    worker_server = grpc.aio.server(options=SERVER_OPTIONS)
    worker_service_pb2_grpc.add_WorkerServiceServicer_to_server(worker, worker_server)
    worker_port = worker_server.add_insecure_port("127.0.0.1:0")
    await worker_server.start()
    scheduler = FakeScheduler(f"127.0.0.1:{worker_port}")
    scheduler_server = grpc.aio.server(options=SERVER_OPTIONS)
    scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server(scheduler, scheduler_server)
    port = scheduler_server.add_insecure_port("127.0.0.1:0")
    await scheduler_server.start()
    yield Cell(scheduler, worker, f"127.0.0.1:{port}")
    await worker.stop()
    await scheduler_server.stop(None)
    await worker_server.stop(None)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
async def make_router(cell: Any, shared_redis: Any, tokenizer_file: Path) -> AsyncIterator[MakeRouter]:
    running: list[tuple[RouterApp, grpc.aio.Channel]] = []
    prefix = f"{uuid.uuid4().hex}:"

    async def make(wait: bool = True, **settings: Any) -> Router:
        settings.setdefault("redis", RedisSettings(url=shared_redis.url, prefix=prefix, timeout_ms=1_000))
        settings.setdefault(
            "models",
            [
                ModelSettings(name="ids", vocab_size=1_000, context_length=10_000),
                ModelSettings(name="text", vocab_size=1_000, context_length=10_000, path=tokenizer_file),
            ],
        )
        app = RouterApp(
            RouterSettings(
                listen="127.0.0.1:0", schedulers=[cell.address], router_id=f"router-{len(running)}", **settings
            ),
            Faults(""),
        )
        channel = open_channel(await app.start())
        running.append((app, channel))
        for _ in range(200 if wait else 0):
            if app.board.core.session_open:
                break
            await asyncio.sleep(0.01)
        return Router(app, inference_service_pb2_grpc.InferenceServiceStub(channel))

    yield make
    for app, channel in running:
        await channel.close()
        await app.stop(0)


@pytest.fixture
def core() -> RouterCore:
    core = RouterCore("router", 1)
    core.scheduler_opened(0)
    entries = [
        session_pb2.WorkerEntry(
            identity=key.proto(), address=f"{key.worker_id}:1", model="m", readiness=capability_pb2.READINESS_READY
        )
        for key in (A, B)
    ]
    opened = core.scheduler_message(down(workers=session_pb2.WorkerList(full=True, workers=entries)), 0)
    assert opened == [OpenFeed(A, "a:1"), OpenFeed(B, "b:1")]
    core.feed_opened(A, 0)
    core.feed_opened(B, 0)
    return core


@pytest.fixture
def running(core: RouterCore) -> RouterCore:
    """Request r on worker A as attempt 1, with tokens 0 and 1 committed."""
    core.submit(new_request(), 0)
    core.scheduler_message(placed(1, A), 0)
    core.feed_message(A, bind(0, 1), 0)
    assert committed(core.feed_message(A, step(0, 0, OUTPUT[:2]), 0)) == OUTPUT[:2]
    return core
