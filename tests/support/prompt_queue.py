"""Prompts that wait, decodes beside them, and a pool with room for so many: what a step policy sees."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hyperflexis_worker.steps.prefill_queue import PrefillQueue
from hyperflexis_worker.steps.step_policy import Decodes, Offer


@dataclass(slots=True, eq=False)
class Prompt:
    number: int
    to_compute: int
    ttft_us: float = 1e6
    tpot_us: float = 50_000.0
    arrival_us: float = 0.0
    computed: int = 0
    made: int = 0
    tier: str = "chat"
    tenant: str = ""
    weight: float = 1.0
    max_tokens: int = 1_000
    output_tokens: int = 10
    due_us: float = field(init=False)

    def __post_init__(self) -> None:
        self.due_us = self.arrival_us + self.ttft_us

    @property
    def prompt_tokens(self) -> int:
        return self.to_compute + self.computed


class Pool:
    """Room for so many requests; `begun_fit`: and for all who have begun."""

    def __init__(self, places: int = 1_000, begun_fit: bool = False) -> None:
        self.places = places
        self.kv_tokens = 1_000_000
        self.begun_fit = begun_fit
        self.taken: list[int] = []
        self.asked = 0
        """Times that somebody new wanted room."""

    def offer(self, request: Prompt) -> Offer | None:
        self.asked += not request.computed
        fits = (self.begun_fit and request.computed > 0) or len(self.taken) < self.places
        return Offer(request.computed, request.to_compute) if fits else None

    def take(self, request: Prompt) -> None:
        self.taken.append(request.number)


def queue_of(*prompts: Prompt) -> PrefillQueue:
    queue = PrefillQueue()
    for prompt in prompts:
        queue.add(prompt)
    return queue


def decodes_of(*tpots_us: float, context: float = 0.0) -> Decodes:
    count = len(tpots_us)
    return Decodes(np.full(count, 1e9), np.full(count, 1e9), np.array(tpots_us), context, np.zeros(count))
