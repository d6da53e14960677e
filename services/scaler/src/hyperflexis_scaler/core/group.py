"""What should run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Workers alike. `target` counts running workers; `maximum` bounds instances of ours, in any state."""

    name: str
    model: str
    target: int
    maximum: int
    count_external: bool = True
    """Workers of the model that somebody else runs count towards the target."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the core waits for what, in microseconds."""

    visible_within_us: int = 2_000_000
    """The provider's promise: an accepted start is listed within this time, or never."""
    start_us: int = 120_000_000
    """From the process's start to its first appearance in the cluster."""
    hung_us: int = 30_000_000
    """A worker that says it hangs, or that left the cluster while its process lives, is replaced after this."""
    drain_us: int = 60_000_000
    """For running requests to end or move before a worker that is scaled in is stopped."""
    stop_us: int = 10_000_000
    """From SIGTERM to SIGKILL."""
    external_us: int = 10_000_000
    """A worker of somebody else that vanished is missed only after this: it may be reconnecting."""
    settle_us: int = 1_000_000
    """After the first sight of the cluster, before trusting that a worker of somebody else is not there."""
