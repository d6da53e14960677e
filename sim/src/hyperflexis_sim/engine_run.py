"""The steps of a simulated engine that are under way: one, or several that are alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperflexis_common.step_time import PLATEAU_TOKENS, StepTimeModel
from hyperflexis_worker.steps.step_policy import Decodes, StepChoice

LONGEST_LEAP = 512
"""Steps; bounds the arrays of a leap."""
_COUNTED = np.arange(LONGEST_LEAP)


def times_us(model: StepTimeModel, choice: StepChoice, decodes: int, context: float, steps: int) -> np.ndarray:
    """[steps] As StepTimeModel.predict_us, of steps that begin with so much context, in which each decode's grows by
    one."""
    tokens, pairs_us = decodes, 0.0
    for request, chunk in choice.chunks:
        tokens += chunk
        pairs_us += model.c3_us * chunk * (chunk / 2 + request.computed)
    first_us = model.c0_us + model.host_us + pairs_us + model.c4_us * context + model.c5_us * decodes
    first_us += model.c1_us * min(tokens, PLATEAU_TOKENS) + model.c2_us * max(0, tokens - PLATEAU_TOKENS)
    found: np.ndarray = first_us + model.c4_us * decodes * _COUNTED[:steps]
    return found


@dataclass(slots=True)
class Run:
    choice: StepChoice
    decodes: Decodes
    ends_us: np.ndarray
    predicted_us: np.ndarray
    took_us: np.ndarray
    """Without what passes before the next one."""
    waiting_left: bool
    told: int = 0
    """Steps that the policy has heard of."""

    def __len__(self) -> int:
        return len(self.ends_us)

    def ended(self, now_us: float) -> int:
        """Steps that are over by then."""
        return int(np.searchsorted(self.ends_us, now_us, "right"))

    def keep(self, steps: int) -> int:
        """Only the first so many; returns how many do not come."""
        gone = len(self.ends_us) - steps
        self.ends_us, self.predicted_us, self.took_us = (
            values[:steps] for values in (self.ends_us, self.predicted_us, self.took_us)
        )
        return gone

    def drop(self, steps: int) -> None:
        """The first so many are over and done with."""
        self.ends_us, self.predicted_us, self.took_us = (
            values[steps:] for values in (self.ends_us, self.predicted_us, self.took_us)
        )
        self.told -= steps
