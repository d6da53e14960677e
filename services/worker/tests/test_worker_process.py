"""The process as an operator meets it: its one line, its health, its signals, its status."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from worker_process_rig import REFERENCE, FakeRouter, FakeScheduler, eventually

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws

COMMAND = [sys.executable, "-m", "hyperflexis_worker"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("HYPERFLEXIS_")}


async def execute(*arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=ENVIRONMENT
    )


@pytest.fixture
async def process(scheduler: FakeScheduler, tmp_path: Path) -> AsyncIterator[Process]:
    config = tmp_path / "stack.yaml"
    config.write_text(
        "models: [{name: m, vocab_size: 1000, context_length: 512}]\n"
        f"worker: {{listen: '127.0.0.1:0', schedulers: ['{scheduler.address}'], worker_id: w, engine: modelled,\n"
        "         profile: test/tiny/tp1, time_scale: 5, stop_grace_s: 10}\n"
    )
    process = await execute("--config", str(config))
    yield process
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def address_of(process: Process) -> str:
    assert process.stdout is not None
    line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
    assert line.startswith("ready service=worker id=w address=127.0.0.1:")
    return line.strip().rpartition("=")[2]


async def test_sigterm_ends_what_runs_and_then_the_process(scheduler: FakeScheduler, process: Process) -> None:
    address = await address_of(process)
    health = await execute("--health", "--listen", address)
    assert await asyncio.wait_for(health.wait(), 30) == 0
    router = FakeRouter(address)
    await router.open()
    router.listen()
    await eventually(lambda: scheduler.sessions)
    await scheduler.run("q", 1)
    await router.start("q", 1)
    await eventually(lambda: router.tokens.get("q"))
    process.send_signal(signal.SIGTERM)
    await eventually(lambda: scheduler.report.readiness == capability_pb2.READINESS_DRAINING)
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert router.tokens["q"] == REFERENCE and router.finished == ["q"]
    await router.close()


async def test_what_the_cluster_has_no_place_for_leaves_with_status_1(
    scheduler: FakeScheduler, process: Process
) -> None:
    rejected = ws.Rejected(reason=ws.Rejected.REASON_FINGERPRINT, message="other weights", permanent=True)
    scheduler.answer = ws.WorkerSessionResponse(epoch=1, rejected=rejected)
    assert await asyncio.wait_for(process.wait(), 30) == 1


async def test_a_wrong_setting_is_one_line_and_status_2() -> None:
    process = await execute("--engine", "modelled", "--profile", "none/such")
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 2
    assert errors.count(b"\n") == 1 and b"configuration error" in errors
