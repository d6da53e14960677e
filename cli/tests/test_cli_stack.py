"""Processes of a local stack: configuration, start, logs, signals, and that none is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from hyperflexis_cli.child import Child, StackError
from hyperflexis_cli.stack import LocalStack
from hyperflexis_cli.stack_settings import (
    BUILT_IN,
    Addresses,
    StackSettings,
    built_in_document,
    documents,
    free_ports,
    port_in_use,
    stack_settings,
)
from hyperflexis_cli.tagged import RUN_VARIABLE, end_tagged, tagged_processes
from hyperflexis_common.config import ConfigError

READY = 'print("ready service=x id=x-1 address=127.0.0.1:5", flush=True)'


def child(tmp_path: Path, code: str, **options: Any) -> Child:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return Child("x", command, tmp_path / "x.log", dict(os.environ), **options)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def eventually(condition: Any, timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


async def test_a_child_is_ready_when_it_says_so(tmp_path: Path) -> None:
    one = child(tmp_path, f"import time; print('starting', flush=True); {READY}; time.sleep(60)")
    assert one.state == "new"
    await one.start(10)
    assert (one.state, one.service_id, one.address) == ("ready", "x-1", "127.0.0.1:5")
    pid = one.pid
    assert pid is not None
    await one.stop()
    assert one.state == "killed by SIGTERM" and gone(pid) and one.pid is None
    assert "starting\nready service=x" in one.log_path.read_text()


async def test_a_child_can_be_started_again(tmp_path: Path) -> None:
    one = child(tmp_path, f"import time; {READY}; time.sleep(60)")
    await one.start(10)
    with pytest.raises(StackError, match="is running"):
        await one.start(10)
    one.send(signal.SIGKILL)
    await one.wait()
    assert one.state == "killed by SIGKILL"
    with pytest.raises(StackError, match="does not run"):
        one.send(signal.SIGTERM)
    await one.start(10)
    assert one.state == "ready"
    await one.stop()


async def test_a_child_that_dies_at_start_shows_its_log(tmp_path: Path) -> None:
    one = child(tmp_path, "import sys; print('configuration error: no', file=sys.stderr); sys.exit(2)")
    with pytest.raises(StackError, match=r"exited 2.*x\.log:\n  configuration error: no"):
        await one.start(10)


async def test_a_child_that_is_never_ready_is_ended(tmp_path: Path) -> None:
    one = child(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(StackError, match=r"not ready after 0\.3 s"):
        await one.start(0.3)
    assert not one.running


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_child_that_does_not_obey_is_killed(tmp_path: Path, stopped: bool) -> None:
    ignoring = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {READY}; time.sleep(60)"
    one = child(tmp_path, ignoring, stop_s=0.3)
    await one.start(10)
    if stopped:
        one.send(signal.SIGSTOP)
    await one.stop()
    assert one.state == "killed by SIGKILL"


async def test_very_long_lines_reach_the_log(tmp_path: Path) -> None:
    one = child(tmp_path, f"print('z' * 300_000, flush=True); {READY}; import time; time.sleep(60)")
    await one.start(10)
    await one.stop()
    assert one.log_path.read_text().count("z") == 300_000


async def test_processes_are_found_by_their_run_wherever_they_stand(tmp_path: Path) -> None:
    """A grandchild in its own session, whose parent is gone."""
    run = f"test-{os.getpid()}-{time.monotonic_ns()}"
    grandchild = "import time; time.sleep(60)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True)"
    environment = {
        **os.environ,
        RUN_VARIABLE: run,
        "HYPERFLEXIS_SCALER_GROUP": "g",
        "HYPERFLEXIS_SCALER_ACTION_ID": "7",
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    found = tagged_processes(run)
    assert [(process.worker, process.leads) for process in found] == [("g-7", True)]
    assert end_tagged(run, 2.0) == []
    assert tagged_processes(run) == []


async def test_the_guardian_ends_a_run_whose_holder_was_killed() -> None:
    run = f"test-{os.getpid()}-{time.monotonic_ns()}"
    code = f"""
        import os, subprocess, sys, time
        tagged = dict(os.environ, {RUN_VARIABLE}={run!r})
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=tagged, start_new_session=True)
        subprocess.Popen([sys.executable, "-m", "hyperflexis_cli.guardian", {run!r}], stdin=subprocess.PIPE,
                         start_new_session=True)
        print("up", flush=True)
        time.sleep(60)
    """
    holder = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == b"up\n"
    assert len(tagged_processes(run)) == 1
    holder.kill()
    holder.wait()
    await eventually(lambda: tagged_processes(run) == [])


def resolved(document: dict[str, Any], **overrides: Any) -> dict[str, Any]:
    settings = stack_settings(document, **overrides)
    addresses = Addresses.choose(document, settings)
    return documents(document, settings, addresses, Path("/runs/1"))


def test_each_process_reads_its_own_address_and_everybodys() -> None:
    found = resolved({**BUILT_IN, "router": {"log_level": "debug"}}, routers=2, schedulers=3)
    assert list(found) == ["scheduler-0", "scheduler-1", "scheduler-2", "scaler", "router-0", "router-1"]
    schedulers = [found[f"scheduler-{index}"]["scheduler"]["listen"] for index in range(3)]
    assert found["router-0"]["router"] == {
        "log_level": "debug",
        "schedulers": schedulers,
        "listen": "127.0.0.1:50051",
    }
    listening = [document[name.partition("-")[0]]["listen"] for name, document in found.items()]
    assert len(set(listening)) == len(listening)
    assert len({document["redis"]["url"] for document in found.values()}) == 1
    assert all("stack" not in document for document in found.values())


def test_the_scaler_starts_the_workers() -> None:
    scaler = resolved({**BUILT_IN, "models": [{"name": "Org/Model 1"}]}, workers=3, engine="modelled")["scaler"][
        "scaler"
    ]
    (group,) = scaler["groups"]
    assert (group["name"], group["model"], group["target"], group["max"]) == ("org-model-1", "Org/Model 1", 3, 6)
    assert group["args"] == ["--engine", "modelled"]
    assert (scaler["state_dir"], scaler["log_dir"]) == ("/runs/1/scaler", "/runs/1/workers")


def test_configured_groups_stay() -> None:
    document = {**BUILT_IN, "scaler": {"groups": [{"name": "mine", "model": "tiny"}], "tick_ms": 100}}
    scaler = resolved(document, workers=5)["scaler"]["scaler"]
    assert scaler["groups"] == [{"name": "mine", "model": "tiny"}]
    assert scaler["tick_ms"] == 100


def test_a_redis_of_ones_own_is_used() -> None:
    found = resolved({**BUILT_IN, "redis": {"prefix": "a:"}, "stack": {"redis": "redis://elsewhere:1/2"}})
    assert found["scaler"]["redis"] == {"prefix": "a:", "url": "redis://elsewhere:1/2"}


def test_overrides_go_before_the_document() -> None:
    assert stack_settings({"stack": {"routers": 2}}, routers=3, workers=None).routers == 3
    assert stack_settings({"stack": {"routers": 2}}).routers == 2
    with pytest.raises(ConfigError, match=r"stack\.engine"):
        stack_settings({}, engine="steam")


def test_the_sample_model_is_named_where_it_is(tmp_path: Path) -> None:
    assert "path" not in built_in_document("modelled", tmp_path)["models"][0]
    (tmp_path / "config.json").touch()
    assert built_in_document("modelled", tmp_path)["models"][0]["path"] == str(tmp_path)
    assert "path" not in BUILT_IN["models"][0]


async def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        assert port_in_use(f"127.0.0.1:{port}")
        stack = LocalStack({**BUILT_IN, "router": {"listen": f"127.0.0.1:{port}"}}, tmp_path)
        with pytest.raises(StackError, match=rf"127\.0\.0\.1:{port} is in use.*router\.listen"):
            await stack.start()
        assert stack.pids == {}
        await stack.stop()
    assert not port_in_use(f"127.0.0.1:{port}")


async def test_redis_starts_and_stops_on_a_port_of_its_own(tmp_path: Path) -> None:
    """All of a stack's life that needs no service."""
    stack = LocalStack(BUILT_IN, tmp_path, free_router_port=True)
    stack._make_children()
    try:
        await stack._start_redis()
        pid = stack.pids["redis"]
        await stack.kill("redis")
        assert gone(pid)
        await stack.restart("redis")
        assert stack.pids["redis"] != pid
        with pytest.raises(StackError, match="no process 'worker-9' runs; there are redis"):
            await stack.kill("worker-9")
        with pytest.raises(StackError, match="is none of redis"):
            await stack.restart("worker-9")
        assert stack.log_path("redis").exists()
    finally:
        await stack.stop()
    assert stack.pids == {}


def test_the_settings_document_themselves() -> None:
    assert all(field.description for field in StackSettings.model_fields.values())
