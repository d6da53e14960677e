"""What the provider says runs, and what the core knows about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperflexis_scaler.core.health import Health
from hyperflexis_scaler.core.removal import Removal


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance as the provider lists it. Its id is also the worker id of the worker in it."""

    instance_id: str
    action_id: str
    """Of the start that made it."""
    group: str
    age_us: int
    alive: bool = True
    """False: its main process ended. It is listed, and occupies its place, until it is killed (cleaned up)."""
    detail: str = ""
    """How it ended, where that is known, and where its log is."""


@dataclass(slots=True)
class Member:
    """The core's record of one listed instance."""

    instance: Instance
    restarts: int = 0
    """Short lives in a row before this one."""
    health: Health = field(default_factory=Health)
    removal: Removal | None = None

    @property
    def counts(self) -> bool:
        """Towards the target."""
        return self.instance.alive and self.removal is None


@dataclass(slots=True)
class PendingStart:
    """A start that was decided and whose instance is not listed yet. It holds its place."""

    action_id: str
    group: str
    restarts: int
    deadline_us: int | None
    """After which it is known to have failed; None while the provider has not answered."""
