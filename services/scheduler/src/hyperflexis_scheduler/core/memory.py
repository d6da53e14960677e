"""What a leader leaves to the next one, beside what the peers' sessions bring."""

from __future__ import annotations

from typing import NamedTuple

from hyperflexis_common.attempt import WorkerKey


class WorkerRecord(NamedTuple):
    """One worker id: the life that has it, or had it last."""

    key: WorkerKey
    address: str
    model: str
    fingerprint: bytes
    retired: tuple[int, ...] = ()
    """Incarnations that had the id before and must not come back."""
    age_us: int = 0
    """Since a leader last knew this life to be here."""


class Memory(NamedTuple):
    workers: tuple[WorkerRecord, ...] = ()
    scaler_epoch: int = 0
    """The highest epoch of a scaler that has acted."""
