"""What the process provider writes down about each process it started."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """Enough to tell this process from any other, for a scaler that did not start it."""

    instance_id: str
    action_id: str
    group: str
    pid: int
    start_ticks: int


class RecordStore:
    """One file per instance in a directory; a file is there whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, record: ProcessRecord) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self._path(record.instance_id)
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(asdict(record)), encoding="utf-8")
        os.replace(draft, path)

    def remove(self, instance_id: str) -> None:
        self._path(instance_id).unlink(missing_ok=True)

    def read(self) -> dict[str, ProcessRecord]:
        """All records; files that are none are left alone."""
        records = {}
        for path in sorted(self.directory.glob(f"*{SUFFIX}")):
            try:
                record = ProcessRecord(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                continue
            records[record.instance_id] = record
        return records

    def _path(self, instance_id: str) -> Path:
        return self.directory / f"{instance_id}{SUFFIX}"
