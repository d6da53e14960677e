"""The real services as a local stack of modelled workers: everything starts, is killed, restarted, and ends."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyperflexis_cli.cluster import find_leader
from hyperflexis_cli.plan import Planned
from hyperflexis_cli.replay import Replay
from hyperflexis_cli.stack import STACK_FILE, LocalStack, StackError
from hyperflexis_cli.stack_settings import built_in_document, free_ports
from hyperflexis_cli.summary import summarise
from hyperflexis_cli.tagged import tagged_processes
from hyperflexis_client import AsyncClient

SERVICES = ("router", "scheduler", "worker", "scaler")
pytestmark = [
    pytest.mark.skipif(
        not all(importlib.util.find_spec(f"hyperflexis_{service}") for service in SERVICES),
        reason="the services are not installed",
    ),
    pytest.mark.slow,
]


def stack_of(directory: Path, **overrides: object) -> LocalStack:
    document = {**built_in_document("modelled", directory), "worker": {"engine_mode": "thread"}}
    return LocalStack(document, directory / "run", free_router_port=True, engine="modelled", **overrides)


async def test_a_stack_serves_through_the_loss_of_a_worker_and_the_leader(tmp_path: Path) -> None:
    async with stack_of(tmp_path, workers=2) as stack:
        await stack.wait_for_workers(timeout_s=40)
        assert set(stack.pids) >= {"redis", "scheduler-0", "scheduler-1", "scaler", "router-0"}
        workers = stack.worker_pids()
        assert len(workers) == 2
        assert stack.log_path(next(iter(workers))).exists()
        async with AsyncClient(stack.routers) as client:
            model = (await client.list_models()).models[0]
            planned = [Planned(index, index / 20, 60, 60, "summarise") for index in range(100)]
            run = asyncio.create_task(Replay(client, planned, model).run())
            await asyncio.sleep(1.0)
            await stack.kill(next(iter(workers)))
            await asyncio.sleep(1.0)
            leader = await find_leader(stack.schedulers)
            assert leader is not None
            name = f"scheduler-{stack.schedulers.index(leader)}"
            await stack.kill(name)
            await stack.restart(name)
            summary = summarise(await run, 1.0)
        assert (summary["finished"], summary["lost_tokens"], summary["repeated_tokens"]) == (100, 0, 0), summary
        run_id = stack.run_id
    assert tagged_processes(run_id) == []
    assert stack.pids == {}


async def test_a_service_that_cannot_start_is_said_with_its_log(tmp_path: Path) -> None:
    document = {**built_in_document("modelled", tmp_path), "default_tier": "gold"}
    stack = LocalStack(document, tmp_path / "run", free_router_port=True, engine="modelled", workers=0)
    with pytest.raises(StackError, match=r"router-0 did not start(.|\n)*gold"):
        await stack.start()
    assert tagged_processes(stack.run_id) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_leaves_no_process_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    config = tmp_path / "stack.yaml"
    document = {
        **built_in_document("modelled", tmp_path),
        "router": {"listen": f"127.0.0.1:{free_ports(1)[0]}"},
        "stack": {"engine": "modelled", "workers": 1, "schedulers": 1},
        "worker": {"engine_mode": "thread"},
    }
    config.write_text(json.dumps(document), encoding="utf-8")
    command = [sys.executable, "-m", "hyperflexis_cli", "up", "--config", str(config)]
    log = tmp_path / "up.log"
    with log.open("wb") as out:
        up = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_for(lambda: "worker tiny" in log.read_text() and "ready" in log.read_text().rpartition("worker tiny")[2])
        (run_file,) = tmp_path.glob(f".hyperflexis/*/{STACK_FILE}")
        run_id = run_file.parent.name
        assert len(tagged_processes(run_id)) >= 5
        os.kill(up.pid, number)
        assert up.wait(30) == (0 if number is not signal.SIGKILL else -signal.SIGKILL), log.read_text()
        wait_for(lambda: tagged_processes(run_id) == [])
        assert run_file.exists() == (number is signal.SIGKILL)
    finally:
        up.kill()
        up.wait()


def wait_for(condition: object, timeout_s: float = 40.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
