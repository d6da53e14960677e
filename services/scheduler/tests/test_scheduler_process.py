"""The process as an operator meets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "hyperflexis_scheduler"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("HYPERFLEXIS_")}


def test_it_says_ready_answers_health_and_stops_on_sigterm(tmp_path: Path):
    config = tmp_path / "stack.yaml"
    config.write_text("redis: {url: 'redis://127.0.0.1:1/0'}\nscheduler: {instance_id: s1}\n")
    arguments = [*COMMAND, "--config", str(config), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready service=scheduler id=s1 address=127.0.0.1:")
        address = line.strip().rpartition("=")[2]
        health = [*COMMAND, "--health", "--config", str(config), "--listen", address]
        assert subprocess.run(health, env=ENVIRONMENT, timeout=30).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stdout.read() == ""
        assert subprocess.run(health, env=ENVIRONMENT, timeout=30).returncode == 1
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_wrong_setting_is_one_line_and_status_2(tmp_path: Path):
    config = tmp_path / "stack.yaml"
    config.write_text("scheduler: {polcy: round_robin}\n")
    result = subprocess.run(
        [*COMMAND, "--config", str(config)], capture_output=True, text=True, env=ENVIRONMENT, timeout=30
    )
    assert result.returncode == 2 and "polcy" in result.stderr and result.stdout == ""
