"""The images that ship, under docker compose, with containers killed while requests run.

`make test-compose` runs this; it needs a Docker engine and takes a few minutes, most of them building images.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from compose_project import ComposeProject

from hyperflexis_client import Client

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1_200)]

CLI = Path(sys.executable).with_name("hyperflexis")
LONG_RUNNING = {"redis", "router", "scheduler-a", "scheduler-b", "worker-1", "worker-2", "scaler"}
REPLAY_S = 20


@pytest.fixture(scope="module")
def stack() -> Iterator[ComposeProject]:
    project = ComposeProject(f"hyperflexis-test-{os.getpid()}")
    try:
        project.compose("up", "--build", "--detach", "--quiet-pull", limit_s=1_000)
        wait_until(lambda: healthy(project) == LONG_RUNNING, 300, lambda: f"not healthy: {project.states()}")
        yield project
    except BaseException:
        print(project.compose("logs", "--no-color", "--tail", "40"))
        raise
    finally:
        project.compose("down", "--volumes", "--timeout", "5", limit_s=120)


def healthy(project: ComposeProject) -> set[str]:
    return {service for service, state in project.states().items() if state == "running/healthy"}


def wait_until(condition: Callable[[], bool], limit_s: float, otherwise: Callable[[], str]) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.5)


def run_cli(*arguments: str, limit_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(CLI), *arguments], capture_output=True, text=True, timeout=limit_s)


def write_trace(path: Path, seconds: float, per_second: float) -> int:
    """Steady arrivals whose outputs take seconds, so that there is always something to lose; how many."""
    chance = random.Random(7)
    tiers = ["chat", "code", "summarise"]
    count = int(seconds * per_second)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["arrival_s", "prompt_tokens", "output_tokens", "tier"])
        for index in range(count):
            lengths = [chance.randint(20, 200), chance.randint(1_000, 1_500)]
            rows.writerow([index / per_second, *lengths, tiers[index % len(tiers)]])
    return count


def in_mid_stream(client: Client, worker_id: str) -> set[str]:
    """Requests that this worker has given the first of their 1,000 tokens or more: seconds are left to kill it."""
    running = [request for request in client.list_requests(500) if request.state == "running"]
    return {r.request_id for r in running if r.worker_id == worker_id and 0 < r.output_tokens < 100}


def attempts(client: Client, request_id: str) -> int:
    finished = client.get_request(request_id).finished
    return finished.attempts if finished else 0


def test_everything_becomes_healthy_and_somebody_leads(stack: ComposeProject) -> None:
    assert healthy(stack) == LONG_RUNNING
    assert stack.states()["model"].startswith("exited"), "the model is written once"
    assert stack.leader() in ("scheduler-a", "scheduler-b")


def test_a_prompt_is_answered(stack: ComposeProject) -> None:
    done = run_cli("generate", "--target", stack.address, "--max-tokens", "16", "The import system")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_replay_outlives_a_worker_and_the_leader(stack: ComposeProject, tmp_path: Path) -> None:
    trace, summary = tmp_path / "trace.csv", tmp_path / "summary.json"
    requests = write_trace(trace, REPLAY_S, per_second=0.7)
    led = stack.leader()
    worker, leader = stack.container("worker-1"), stack.container(led)
    victims: set[str] = set()
    command = [str(CLI), "replay", "--target", stack.address, "--trace", str(trace), "--json", str(summary)]
    with (
        Client(stack.address) as client,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as replay,
    ):
        time.sleep(REPLAY_S * 0.3)
        while not victims and replay.poll() is None:
            time.sleep(0.02)
            victims = in_mid_stream(client, "worker-1")
        stack.kill(worker)
        time.sleep(REPLAY_S * 0.25)
        assert replay.poll() is None, "the replay ended before the leader was killed"
        stack.kill(leader)
        output, _ = replay.communicate(timeout=180)
        moved = {victim for victim in victims if attempts(client, victim) > 1}
    assert replay.returncode == 0, output

    result: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    found = {key: result[key] for key in ("requests", "finished", "failed", "lost_tokens", "repeated_tokens")}
    assert found == {"requests": requests, "finished": requests, "failed": 0, "lost_tokens": 0, "repeated_tokens": 0}
    assert moved, f"none of {victims} was in mid-stream any more when worker-1 died: the test proved little"
    assert stack.leader() not in ("", led), "the standby leads now"


def test_what_was_killed_joins_again(stack: ComposeProject) -> None:
    """After the replay: the same worker id in a new life, the old leader as standby."""
    stack.compose("up", "--detach", "--no-build")
    wait_until(lambda: healthy(stack) == LONG_RUNNING, 90, lambda: f"not healthy: {stack.states()}")
    done = run_cli("generate", "--target", stack.address, "--max-tokens", "16", "The import system")
    assert done.returncode == 0, done.stderr
