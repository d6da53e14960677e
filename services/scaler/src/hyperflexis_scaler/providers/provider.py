"""The seam between the scaler and whatever runs its workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from hyperflexis_scaler.core.instance import Instance


class NotDone(Exception):
    """The call certainly had no effect; the message says why. Any other failure leaves that open."""


class ProviderAway(Exception):
    """The provider did not answer; what it was asked for may have happened."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One worker to start."""

    instance_id: str
    action_id: str
    group: str
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Provider(Protocol):
    """Instances of one cell. What it made stays until killed, whatever happens to the scaler."""

    visible_within_us: int
    """A start that was asked for is listed within this time, or never."""

    async def list(self) -> Sequence[Instance]:
        """Every instance of the cell, ended ones included until kill() removed them. Raises ProviderAway."""
        ...

    async def start(self, launch: Launch) -> None:
        """Starts one instance, tagged with cell, action and group. Raises NotDone, ProviderAway."""
        ...

    async def stop(self, instance_id: str) -> None:
        """Asks it to end (SIGTERM). Nothing happens to one that has ended. Raises NotDone, ProviderAway."""
        ...

    async def kill(self, instance_id: str) -> None:
        """Ends it and everything it left, and removes its traces; repeated until it is no longer listed.

        Raises NotDone, ProviderAway.
        """
        ...
