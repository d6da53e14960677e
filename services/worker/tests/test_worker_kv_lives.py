"""An engine that ends and comes back while its caches move: what was meant for the old one must not reach the new."""

from __future__ import annotations

import asyncio
from typing import Any

from cache_cell import cell, slow
from memory_wire import MemoryWire
from prometheus_client import CollectorRegistry
from worker_rig import ready

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.worker.v1 import worker_service_pb2
from hyperflexis_common.clock import SystemClock
from hyperflexis_worker.core.worker import WorkerCore
from hyperflexis_worker.engine import frames, kv_frames
from hyperflexis_worker.metrics import WorkerMetrics
from hyperflexis_worker.moving import Moving

PROMPT = list(range(100, 130))


def test_a_lease_of_an_older_life_is_none_of_the_next() -> None:
    """Leases are asked for by number alone, at an address where another engine may live by then: its blocks are not
    what was leased, and its leases are not the asker's to end."""
    leases = []
    for _ in range(2):
        with cell(slow("a"), slow("b"), wire=MemoryWire()) as both:
            a, _ = both.engines
            a.add("r", PROMPT, 60)
            both.until(lambda a=a: len(a.outputs.get("r", [])) >= 3)
            leases.append(both.export(a, "r").lease_id)
            assert not both.release(a, leases[0]).held or len(leases) == 1
    assert leases[0] != leases[1]


def linked(core: WorkerCore, number: int) -> None:
    """To engine e0 of worker w0; `number`: of the question that this takes."""
    links = core.moves.links
    links.link(movement_pb2.WorkerRef(worker_id="w0", address="w0:1"))
    part = movement_pb2.RankPart(layout_fingerprint=links.layout)
    links.told(number, worker_service_pb2.LinkResponse(parts=[part], engine="e0"), "", 0)


async def test_bytes_that_an_older_life_asked_for_do_not_reach_the_next() -> None:
    """Each life counts its questions from 1, so that it would take them for an answer to one of its own."""
    core = ready().core
    sent: list[frames.ToEngine] = []
    moving = Moving(core, sent.append, lambda effects: None, SystemClock(), WorkerMetrics(CollectorRegistry()))
    linked(core, 1)
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def read(*_: Any) -> bytes:
        return await answer

    moving._peers.read = read  # type: ignore[method-assign]
    moving.engine_event(kv_frames.FetchBytes(1, "e0", 5, [3]))
    await asyncio.sleep(0)
    moving.engine_lost()
    answer.set_result(b"late")
    await asyncio.sleep(0.01)
    assert sent == []
    core.moves.links.engine_lost()
    linked(core, 2)
    moving.engine_event(kv_frames.FetchBytes(1, "e0", 6, [4]))
    await asyncio.sleep(0.01)
    assert sent == [kv_frames.FetchedBytes(1, b"late")]
    await moving.close()
