"""How far a mean over a few seeds is to be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev

STUDENT_95 = (0.0, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Two-sided, by degrees of freedom; 2.2 beyond, which is on the safe side."""


def half_width_95(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean; 0 for one value, of which nothing can be said."""
    freedom = len(values) - 1
    if freedom < 1:
        return 0.0
    student = STUDENT_95[freedom] if freedom < len(STUDENT_95) else 2.2
    return float(student * stdev(values) / len(values) ** 0.5)
