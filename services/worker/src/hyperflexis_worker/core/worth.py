"""What one attained request is worth now: the tier's weight, made larger or smaller by what was promised and paid.

Victims are chosen by work divided by worth, so that one number carries weights, guarantees, the reserve for long
prompts and the shares of tenants. All of them are bounded: a cheap request is worth keeping before any dear one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hyperflexis_worker.core.prefill_queue import Floats, PrefillQueue, Waiting


@dataclass(frozen=True, slots=True)
class WorthRules:
    long_prompt_tokens: int = 0
    """Prompts of at least so many tokens share the reserve; 0 = there is none."""
    long_prompt_share: float = 0.0
    """Of prefill time, kept for them while they wait."""


class Worth:
    """`of` a request; `served` tells what prefill was done for whom."""

    def __init__(self, rules: WorthRules | None = None) -> None:
        self._rules = rules or WorthRules()

    def of(self, queue: PrefillQueue) -> Floats:
        """[len(queue)]"""
        return queue.weight

    def served(self, request: Waiting, prefill_us: float) -> None:
        pass
