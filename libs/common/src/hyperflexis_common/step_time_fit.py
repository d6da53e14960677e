"""Fits the step-time model to the steps of the engine it runs in.

Least squares over relative errors, kept as a 6 x 6 normal matrix, so that a step costs microseconds and no history is
kept. What makes it safe to leave running:

- it is anchored to a seed by a ridge prior, after the seed was scaled to the steps as a whole: what they do not tell
  (an hour of decodes says nothing of prefill) stays as the seed says, on a device so much faster or slower;
- a step counts only while its shape is news, or the model is wrong about it: a million equal decodes weigh as much
  as a few hundred;
- the weight of the past is capped, so a slower clock or another neighbour is learned in thousands of steps;
- the first steps of a process (allocations, caches, compilation) are left out, and far outliers count little;
- coefficients are never negative.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from hyperflexis_common.step_time import StepShape, StepTimeModel

COLD_STEPS = 8
"""First steps, left out."""
NOVELTY = 1 / 256
"""A shape is news while the steps so far pin its time down less well than so many steps of this very shape would."""
SURPRISE = 0.1
"""Relative error from which a step counts although its shape is none."""
OUTLIER = 0.5
"""Relative error from which a step counts less and less."""
WEIGHT_CAP = 4_096.0
"""Steps that the memory is worth at most."""
PRIOR = 0.005
"""What a coefficient twice the seed's costs, in steps predicted 100 % wrong: as much as two that are 5 % off."""
REFRESH = 16
"""Steps counted between two solutions."""
RECENT = 512
"""Steps whose errors are told."""

SIZE = 6
Vector = list[float]
Matrix = list[Vector]


@dataclass(frozen=True, slots=True)
class StepErrors:
    """Absolute relative errors of the latest predictions, each made before its step was learned."""

    mean: float
    p50: float
    p95: float
    samples: int
    """Steps predicted in all."""


class StepTimeFit:
    """`observe` each step; `model` is the best one so far, the seed at first."""

    def __init__(self, seed: StepTimeModel) -> None:
        self.model = seed
        self._seed = [seed.c0_us + seed.host_us, seed.c1_us, seed.c2_us, seed.c3_us, seed.c4_us, seed.c5_us]
        # A coefficient that the seed has not is free within what the others' steps would still notice.
        constant = max(self._seed[0], 1.0)
        self._widths = [max(v, constant * floor) for v, floor in zip(self._seed, _FLOORS, strict=True)]
        self._normal: Matrix = [[0.0] * SIZE for _ in range(SIZE)]
        self._target: Vector = [0.0] * SIZE
        self._inverse = _inverse(self._with_prior()[0])
        self._weight = 0.0
        self._counted = 0
        self._seen = 0
        self._errors: deque[float] = deque(maxlen=RECENT)

    def observe(self, shape: StepShape, took_us: float) -> None:
        """A step took so long. Steps without tokens or time tell nothing."""
        if shape.tokens == 0 or took_us <= 0:
            return
        self._seen += 1
        if self._seen <= COLD_STEPS:
            return
        error = abs(self.model.predict_us(shape) / took_us - 1)
        self._errors.append(error)
        # Relative errors: a step and its time are divided by the time.
        row = [value / took_us for value in features(shape)]
        if error < SURPRISE and self._leverage(row) < NOVELTY:
            return
        self._count(row, min(1.0, OUTLIER / error) if error > 0 else 1.0)

    @property
    def errors(self) -> StepErrors:
        ranked = sorted(self._errors)
        if not ranked:
            return StepErrors(0.0, 0.0, 0.0, 0)
        mean, last = sum(ranked) / len(ranked), len(ranked) - 1
        return StepErrors(mean, ranked[last // 2], ranked[math.ceil(last * 0.95)], self._seen - COLD_STEPS)

    def refresh(self) -> None:
        """Solves now; `observe` does it by itself now and then."""
        normal, target = self._with_prior()
        self._inverse = _inverse(normal)
        self.model = _model(_solve_nonnegative(normal, target))

    def _count(self, row: Vector, weight: float) -> None:
        for i in range(SIZE):
            for j in range(SIZE):
                self._normal[i][j] += weight * row[i] * row[j]
            self._target[i] += weight * row[i]
        self._weight += weight
        if self._weight > WEIGHT_CAP:
            self._normal = [[value / 2 for value in row] for row in self._normal]
            self._target = [value / 2 for value in self._target]
            self._weight /= 2
        self._counted += 1
        if self._counted % REFRESH == 0 or self._counted < REFRESH:
            self.refresh()

    def _with_prior(self) -> tuple[Matrix, Vector]:
        seed, normal, target = self._seed, [row[:] for row in self._normal], self._target[:]
        told = sum(a * sum(b * c for b, c in zip(row, seed, strict=True)) for a, row in zip(seed, normal, strict=True))
        # The one factor that fits the seed to the steps; one, while there are none.
        size = (sum(a * b for a, b in zip(seed, target, strict=True)) + PRIOR) / (told + PRIOR)
        for i in range(SIZE):
            strength = PRIOR / (size * self._widths[i]) ** 2
            normal[i][i] += strength
            target[i] += strength * size * seed[i]
        return normal, target

    def _leverage(self, row: Vector) -> float:
        return sum(row[i] * sum(self._inverse[i][j] * row[j] for j in range(SIZE)) for i in range(SIZE))


_FLOORS = (1.0, 1e-3, 1e-3, 1e-6, 1e-6, 1e-3)
"""Of each coefficient's prior width, as a share of the seed's constant: per token, token pair, context token."""


def features(shape: StepShape) -> Vector:
    """What the coefficients multiply, in the order c0 … c5: the model with every coefficient but one at zero."""
    return [unit.predict_us(shape) for unit in _UNITS]


def _model(coefficients: Vector) -> StepTimeModel:
    c0, c1, c2, c3, c4, c5 = coefficients
    return StepTimeModel(c0, c1, c2, c3, c4, c5, host_us=0.0)


_UNITS = [_model([float(i == j) for j in range(SIZE)]) for i in range(SIZE)]


def _solve_nonnegative(matrix: Matrix, vector: Vector) -> Vector:
    """The least squares solution without negative coefficients: those that would be are set to zero, worst first."""
    free = list(range(len(vector)))
    while free:
        inner = _inverse([[matrix[i][j] for j in free] for i in free])
        solution = [sum(a * vector[j] for a, j in zip(row, free, strict=True)) for row in inner]
        worst = min(range(len(free)), key=lambda k: solution[k] * math.sqrt(matrix[free[k]][free[k]]))
        if solution[worst] >= 0:
            break
        del free[worst]
    found = dict(zip(free, solution, strict=True)) if free else {}
    return [found.get(i, 0.0) for i in range(len(vector))]


def _inverse(matrix: Matrix) -> Matrix:
    """Of a positive definite matrix, by elimination after scaling its diagonal to one."""
    size = len(matrix)
    scale = [1 / math.sqrt(matrix[i][i]) for i in range(size)]
    rows = [
        [matrix[i][j] * scale[i] * scale[j] for j in range(size)] + [float(i == j) for j in range(size)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = max(range(i, size), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        head = rows[i][i]
        rows[i] = [value / head for value in rows[i]]
        for k in range(size):
            if k != i and rows[k][i]:
                factor = rows[k][i]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [[rows[i][size + j] * scale[i] * scale[j] for j in range(size)] for i in range(size)]
