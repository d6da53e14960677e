"""The steps of a simulated engine that are under way: one, or several that are alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyperflexis_worker.core.step_policy import Decodes, StepChoice


@dataclass(slots=True)
class Run:
    choice: StepChoice
    decodes: Decodes
    ends_us: np.ndarray
    predicted_us: np.ndarray
    took_us: np.ndarray
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
