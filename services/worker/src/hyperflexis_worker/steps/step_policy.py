"""What one engine step does, decided: the seam between what a policy sees and who acts on it.

A policy sees who decodes (`Decodes`) and who waits for a first token (`PrefillQueue`), and answers with a `StepChoice`.
It knows no tokens, blocks, sockets or clocks, so that the very same object runs in the worker and in the simulator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_worker.steps.prefill_queue import Floats, PrefillQueue, Waiting


@dataclass(frozen=True, slots=True)
class Decodes:
    """All requests that decode, one entry each; times in microseconds on the policy's clock."""

    due_us: Floats
    """[n] When the next token is due: that of the first token plus TPOT times the tokens made."""
    pause_end_us: Floats
    """[n] When the pause since the last token gets longer than max_gap (never shorter than TPOT)."""
    tpot_us: Floats
    """[n]"""
    context_tokens: float
    """Of all together."""
    credit: Floats
    """[n] Kept by policies that let requests sit a step out; zero at first."""
    token_due_us: Floats | None = None
    """[n] When the next token is due by arrival + TTFT + k TPOT; None where no policy asks for it."""

    @property
    def count(self) -> int:
        return len(self.due_us)


NO_DECODES = Decodes(np.empty(0), np.empty(0), np.empty(0), 0.0, np.empty(0))


class Offer(NamedTuple):
    """Room for a request: where its prefill would begin (after what the prefix cache has) and what is left."""

    context: int
    tokens: int


class Room(Protocol):
    """The KV pool as admission sees it."""

    @property
    def kv_tokens(self) -> int:
        """Tokens that the pool holds when nobody else is there."""
        ...

    def offer(self, request: Waiting) -> Offer | None:
        """None where the pool has no room for it: its prompt, and what all who run are expected to grow by."""
        ...

    def take(self, request: Waiting) -> None:
        """It gets a chunk in this step."""
        ...


class Chosen(NamedTuple):
    request: Waiting
    tokens: int


class GivenUp(NamedTuple):
    """Why a request will not be served here, with the numbers that decided it."""

    request: Waiting
    reason: str
    numbers: Mapping[str, float]


@dataclass(slots=True)
class StepChoice:
    """One step: prefill chunks in order, who sits the step out, who is given up."""

    chunks: list[Chosen] = field(default_factory=list)
    given_up: list[GivenUp] = field(default_factory=list)
    decode: npt.NDArray[np.bool_] | None = None
    """[n] Who decodes; None = everybody."""
    repeats: bool = True
    """With nobody waiting, the next step is chosen alike until somebody comes or goes: a simulator may skip asking."""
    budget_us: float = 0.0
    """The longest this step was allowed to take; 0 = no such limit."""


class StepPolicy(Protocol):
    """Stateful only in what it learns; one object for each engine."""

    model: StepTimeModel
    """Renewed by whoever fits it."""

    def choose(self, now_us: float, decodes: Decodes, queue: PrefillQueue, room: Room) -> StepChoice:
        """The step to run now; with no decodes, it begins one that waits, if any has room. Changes no queue."""
        ...

    def stepped(
        self, choice: StepChoice, decodes: Decodes, waiting_left: bool, predicted_us: float, took_us: float
    ) -> None:
        """The step chosen took so long. `waiting_left`: prefill was left over."""
        ...

    def learn_output(self, tier: str, tokens: int) -> None:
        """A request of this tier ended with so many output tokens."""
        ...

    def turns_us(self, queue: PrefillQueue) -> Floats | None:
        """[len(queue)] Each one's turn (hyperflexis_common.turns); None = served in another order."""
        ...
