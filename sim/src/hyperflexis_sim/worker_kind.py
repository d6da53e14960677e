"""What one simulated worker is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperflexis_common.step_time import StepTimeModel


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """A GPU with an engine on it."""

    model: StepTimeModel
    """What scheduler and policies believe."""
    kv_tokens: int
    slower: float = 1.0
    """How much slower it is in truth."""
    name: str = "gpu"
    steps: Sequence[tuple[float, float]] = ()
    """Measured, in order: the time by the model, and what it took over that; none = the cluster's `step_noise`."""
    host_us: float = 0.0
    """Between two steps: its policy counts with it, the scheduler knows nothing of it."""
