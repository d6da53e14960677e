"""Drawn step times: their size, their company, and that a cut leap leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest

from hyperflexis_sim.noise import STRETCH, MeasuredNoise, Noise

SMALL, LARGE = 2_000.0, 30_000.0
STEPS = [(SMALL, 2.0 + i / 1e4) if i % 2 else (LARGE, 1.0 + i / 1e4) for i in range(1_000)]


def test_noise_has_mean_one_and_the_deviation() -> None:
    factors = Noise(0.2, (1,)).take(np.ones(20_000))
    assert factors.mean() == pytest.approx(1.0, abs=0.01)
    assert factors.std() == pytest.approx(0.2, abs=0.01)


def test_measured_steps_vary_as_those_of_their_size() -> None:
    noise = MeasuredNoise(STEPS, (1,))
    assert (noise.take(np.full(500, SMALL)) >= 2.0).all()
    assert (noise.take(np.full(500, LARGE)) < 1.5).all()
    mixed = noise.take(np.array([SMALL, LARGE] * 50))
    assert (mixed[::2] >= 2.0).all() and (mixed[1::2] < 1.5).all()


def test_measured_steps_stay_in_stretches() -> None:
    factors = MeasuredNoise(STEPS, (3,)).take(np.full(STRETCH, SMALL))
    gaps = np.diff(factors)
    assert np.isclose(gaps, 2e-4).sum() >= STRETCH - 2  # one after the other, but for where the record begins again


@pytest.mark.parametrize("noise", [lambda: Noise(0.2, (1,)), lambda: MeasuredNoise(STEPS, (1,))])
def test_what_is_given_back_comes_again(noise) -> None:
    times = np.array([SMALL, LARGE, SMALL, SMALL, LARGE])
    whole, cut = noise(), noise()
    expected = whole.take(times)
    assert np.array_equal(cut.take(times), expected)
    cut.give_back(4)
    assert np.array_equal(cut.take(times[1:]), expected[1:])


def test_steps_all_alike_are_one_class() -> None:
    assert MeasuredNoise([(SMALL, 1.25)] * 3, (0,)).take(np.array([1.0, SMALL, LARGE])).tolist() == [1.25] * 3
