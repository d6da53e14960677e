"""What leaders leave to the next one, as Redis keeps it."""

from __future__ import annotations

from hyperflexis_scheduler.core.memory import Memory, WorkerRecord


class Store:
    def __init__(self) -> None:
        self.epoch = 0
        """Of the newest leader; what an older one writes is refused."""
        self._records: dict[str, tuple[WorkerRecord, int]] = {}
        self._scaler_epoch = 0

    def write(self, epoch: int, memory: Memory, now_us: int) -> None:
        if epoch < self.epoch:
            return
        self._records |= {record.key.worker_id: (record, now_us) for record in memory.workers}
        self._scaler_epoch = max(self._scaler_epoch, memory.scaler_epoch)

    def read(self, now_us: int) -> Memory:
        aged = (record._replace(age_us=now_us - written_us) for record, written_us in self._records.values())
        return Memory(tuple(aged), self._scaler_epoch)
