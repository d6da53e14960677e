"""The router as a process: its one line, its health, its end, and its faults."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis.router.v1 import inference_service_pb2_grpc
from hyperflexis_common.tokens import pack
from hyperflexis_router.faults import Faults


def start(tmp_path: Path, redis_url: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    config = tmp_path / "stack.yaml"
    config.write_text(
        f"redis: {{url: '{redis_url}', timeout_ms: 1000}}\n"
        "models: [{name: m}]\nrouter: {listen: '127.0.0.1:0', schedulers: ['127.0.0.1:1'], stop_grace_s: 0.2}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "hyperflexis_router", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready service=router id=router-")
    return process, line.strip().rpartition("address=")[2]


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    assert process.stdout is not None
    rest = process.stdout.read()
    process.stdout.close()
    return process.wait(timeout=20), rest


def test_one_line_healthy_and_a_clean_end(tmp_path: Path, shared_redis: Any) -> None:
    process, address = start(tmp_path, shared_redis.url)
    health = [sys.executable, "-m", "hyperflexis_router", "--health", "--listen"]
    assert subprocess.run([*health, address], timeout=30, check=False).returncode == 0
    process.send_signal(signal.SIGTERM)
    assert finish(process) == (0, "")
    assert subprocess.run([*health, address], timeout=30, check=False).returncode == 1


@pytest.mark.parametrize("point", ["validated", "recorded", "accepted", "submitted"])
def test_it_crashes_where_told(tmp_path: Path, shared_redis: Any, point: str) -> None:
    process, address = start(tmp_path, shared_redis.url, HYPERFLEXIS_FAULTS=f"crash_after={point}")
    with grpc.insecure_channel(address) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        request = pb.GenerateRequest(model="m", token_ids=pb.TokenIds(packed=pack([1])))
        with pytest.raises(grpc.RpcError):
            list(stub.Generate(request, timeout=10))
    assert finish(process)[0] == 137


def test_bad_configuration_is_one_line_and_status_2(tmp_path: Path) -> None:
    config = tmp_path / "stack.yaml"
    config.write_text("router: {nonsense: 1}\n")
    command = [sys.executable, "-m", "hyperflexis_router", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nonsense" in done.stderr
    config.write_text("default_tier: gold\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2 and "none of the tiers: chat" in done.stderr


def test_an_unknown_point_is_refused() -> None:
    with pytest.raises(ValueError, match="points: validated, recorded"):
        Faults("crash_after=nowhere")
