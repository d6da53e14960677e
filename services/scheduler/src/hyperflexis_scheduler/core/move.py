"""A request on its way from the worker where it runs to another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hyperflexis_common.attempt import Attempt

if TYPE_CHECKING:
    from hyperflexis_scheduler.core.worker import WorkerState


@dataclass(slots=True, eq=False)
class Move:
    """Until it ends, the older attempt is the current one; its target's report makes this one so."""

    target: WorkerState
    attempt: Attempt
    reason: str
    began_us: int
    source_slot: int
    gigabytes: float
    """Of its cache, about."""
    stopped: bool = False
    """Its source has let go of it: if the move fails now, the request is computed again."""
