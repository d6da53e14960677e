"""Ten faults on a live cell; `make chaos` makes a thousand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = (
    "kill_worker", "stop_worker", "kill_engine", "kill_leader", "kill_router", "redis_restarted_empty",
    "two_resumes", "cancel_storm", "run_delivered_placed_lost_leader_killed", "connections_reset",
)  # fmt: skip


@pytest.mark.timeout(150)
def test_ten_faults_cost_no_token(tmp_path: Path) -> None:
    run = Path(__file__).with_name("run.py")
    command = [sys.executable, str(run), "--out", str(tmp_path), "--streams", "8", "--kinds", *KINDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=140, check=False)
    assert done.returncode == 0, done.stdout[-3_000:] + done.stderr[-3_000:]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["faults"] == dict.fromkeys(KINDS, 1)
    assert summary["not_fired"] == {}
    assert summary["requests"] == summary["finished"] + summary["cancelled"]
    assert summary["finished"] >= 2 * 8, "each stream finished one before or under the faults, and one after them"
