"""What the engine did, a JSON line for each step and each request that came: what a simulator is held against.

Times are microseconds of this machine's monotonic clock.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hyperflexis_common.step_time import StepShape
from hyperflexis_worker.engine.frames import Add
from hyperflexis_worker.steps.step_loop import StepResult


class StepLog:
    """A file of its own for each life of an engine, `<worker id>-<pid>.jsonl`."""

    def __init__(self, directory: Path, worker_id: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / f"{worker_id}-{os.getpid()}.jsonl").open("w", encoding="utf-8", buffering=1 << 16)

    def added(self, add: Add) -> None:
        """`sent_us`: the shell passed it on, and the next step begins with it; `arrival_us`: its router had it."""
        self._write(added=add.request_id, sent_us=add.sent_us, arrival_us=add.arrival_us)

    def stepped(
        self, shape: StepShape, began_us: int, took_us: int, predicted_us: float, result: StepResult, busy: bool
    ) -> None:
        """`busy`: the next step follows at once."""
        self._write(
            began_us=began_us,
            took_us=took_us,
            predicted_us=round(predicted_us),
            busy=busy,
            prefill_chunks=shape.prefill_chunks,
            decodes=shape.decodes,
            decode_context_tokens=shape.decode_context_tokens,
            first=[sequence.request_id for sequence, _, _ in result.tokens if sequence.made == 1],
            last=[ended.sequence.request_id for ended in result.ended],
            given_up=[sequence.request_id for sequence, _ in result.given_up],
        )

    def close(self) -> None:
        self._file.close()

    def _write(self, **line: Any) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
