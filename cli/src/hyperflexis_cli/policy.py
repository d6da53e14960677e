"""Which scheduling a stack runs with: how a worker is chosen, and what one step of a worker does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCHEDULER_POLICIES = ("hyperflexis", "round_robin", "least_requests", "jsq")
WORKER_POLICIES = ("hyperflexis", "admission", "fcfs", "edf", "scorpio")
"""As scheduler.policy and worker.policy of the settings have them."""
OURS = "hyperflexis"


class PolicyError(ValueError):
    """No policy has that name; the message says which there are."""


@dataclass(frozen=True, slots=True)
class Policy:
    scheduler: str
    worker: str

    @property
    def name(self) -> str:
        """As it is parsed."""
        return OURS if (self.scheduler, self.worker) == (OURS, OURS) else f"{self.scheduler}+{self.worker}"

    @classmethod
    def parse(cls, text: str) -> Policy:
        """`hyperflexis`, or `<scheduler>+<worker>`. Raises PolicyError."""
        text = text.strip()
        scheduler, _, worker = (OURS, "+", OURS) if text == OURS else text.partition("+")
        if scheduler in SCHEDULER_POLICIES and worker in WORKER_POLICIES:
            return cls(scheduler, worker)
        raise PolicyError(
            f"no policy {text!r}: write {OURS}, or a scheduler's and a worker's as in round_robin+fcfs "
            f"(scheduler: {', '.join(SCHEDULER_POLICIES)}; worker: {', '.join(WORKER_POLICIES)})"
        )

    @classmethod
    def parse_all(cls, text: str) -> list[Policy]:
        """Names with commas, in the order given. Raises PolicyError where one comes twice."""
        policies = [cls.parse(part) for part in text.split(",")]
        for policy in policies:
            if policies.count(policy) > 1:
                raise PolicyError(f"policy {policy.name!r} is named twice: name each once")
        return policies

    def applied_to(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The stack's document with this scheduling, whatever it said."""
        sections = {"scheduler": self.scheduler, "worker": self.worker}
        chosen = {section: {**(document.get(section) or {}), "policy": policy} for section, policy in sections.items()}
        return {**document, **chosen}
