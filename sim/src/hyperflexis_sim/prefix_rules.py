"""What a simulated cluster does with prompts that begin alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PrefixRules:
    """The defaults are what the live stack does. Where a workload does not tell which prompts begin alike, all of
    this changes nothing."""

    aware: bool = True
    """Placement counts on what workers report to keep."""
    pull: bool = False
    """What a peer has more of than the worker that gets the request is read from there where that is quicker: an
    upper bound on what this could gain (docs/scheduling.md), as placement knows every cache and link as they are, reads
    slow nothing, and no source evicts what is being read."""
