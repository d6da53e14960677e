"""The fit of the step-time model: it learns what the steps tell, and keeps what they do not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis_common.step_time import SEEDS, StepShape, StepTimeModel
from hyperflexis_common.step_time_fit import COLD_STEPS, StepTimeFit, features

H200 = SEEDS["h200/llama-3.1-8b/tp1"]
A100 = SEEDS["a100/llama-3.1-8b/tp1"]


def mixed(chance: random.Random) -> StepShape:
    chunks = [(chance.randrange(1, 2_000), chance.randrange(0, 8_000)) for _ in range(chance.choice([0, 0, 1, 2]))]
    decodes = chance.randrange(0 if chunks else 1, 128)
    return StepShape(tuple(chunks), decodes, sum(chance.randrange(1, 4_000) for _ in range(decodes)))


def decodes(chance: random.Random) -> StepShape:
    return StepShape((), 32, 32 * chance.randrange(900, 1_100))


def run(fit: StepTimeFit, truth: StepTimeModel, shapes: list[StepShape], chance: random.Random, noise: float) -> None:
    for shape in shapes:
        fit.observe(shape, truth.predict_us(shape) * chance.lognormvariate(0, noise))


def error(model: StepTimeModel, truth: StepTimeModel, shapes: list[StepShape]) -> float:
    return sum(abs(model.predict_us(s) / truth.predict_us(s) - 1) for s in shapes) / len(shapes)


def test_features_are_what_the_model_multiplies() -> None:
    chance = random.Random(1)
    for shape in [mixed(chance) for _ in range(50)]:
        coefficients = [H200.c0_us + H200.host_us, H200.c1_us, H200.c2_us, H200.c3_us, H200.c4_us, H200.c5_us]
        total = sum(a * b for a, b in zip(coefficients, features(shape), strict=True))
        assert total == pytest.approx(H200.predict_us(shape))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.2, 8.0))
def test_it_learns_another_device_from_noisy_steps(seed: int, scale: float) -> None:
    chance = random.Random(seed)
    truth = StepTimeModel(
        *(scale * value for value in (A100.c0_us, A100.c1_us, A100.c2_us, A100.c3_us, A100.c4_us)), host_us=500.0
    )
    fit = StepTimeFit(H200)
    run(fit, truth, [mixed(chance) for _ in range(400)], chance, noise=0.05)
    fit.refresh()
    assert error(fit.model, truth, [mixed(chance) for _ in range(200)]) < 0.03
    assert fit.errors.p50 <= fit.errors.p95 and fit.errors.samples == 400 - COLD_STEPS


def test_hours_of_equal_decodes_do_not_unlearn_prefill() -> None:
    chance = random.Random(3)
    fit = StepTimeFit(H200)
    run(fit, A100, [mixed(chance) for _ in range(400)], chance, noise=0.05)
    run(fit, A100, [decodes(chance) for _ in range(20_000)], chance, noise=0.05)
    fit.refresh()
    assert error(fit.model, A100, [mixed(chance) for _ in range(200)]) < 0.03


def test_what_no_step_tells_stays_as_the_seed_says() -> None:
    chance = random.Random(4)
    fit = StepTimeFit(H200)
    run(fit, H200, [decodes(chance) for _ in range(2_000)], chance, noise=0.05)
    fit.refresh()
    assert error(fit.model, H200, [mixed(chance) for _ in range(200)]) < 0.05


def test_a_device_that_slows_down_is_followed() -> None:
    chance = random.Random(5)
    slower = StepTimeModel(*(1.5 * v for v in (H200.c0_us, H200.c1_us, H200.c2_us, H200.c3_us, H200.c4_us)))
    fit = StepTimeFit(H200)
    run(fit, H200, [mixed(chance) for _ in range(20_000)], chance, noise=0.05)
    run(fit, slower, [mixed(chance) for _ in range(10_000)], chance, noise=0.05)
    fit.refresh()
    assert error(fit.model, slower, [mixed(chance) for _ in range(200)]) < 0.06
    assert fit.errors.mean < 0.1


def test_cold_steps_and_hiccups_hardly_count() -> None:
    chance = random.Random(6)
    fit = StepTimeFit(H200)
    for shape in [mixed(chance) for _ in range(COLD_STEPS)]:
        fit.observe(shape, 10_000_000)
    assert fit.model == H200 and fit.errors.samples == 0
    for index, shape in enumerate([mixed(chance) for _ in range(1_000)]):
        fit.observe(shape, H200.predict_us(shape) * (20.0 if index % 50 == 0 else 1.0))
    fit.refresh()
    assert error(fit.model, H200, [mixed(chance) for _ in range(200)]) < 0.05


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5_000), st.integers(0, 10**5), st.integers(0, 256), st.floats(1e-3, 1e12)), max_size=60
    ),
    st.sampled_from([H200, StepTimeModel(0, 0, 0, 0, 0, host_us=0)]),
)
def test_whatever_it_is_told_predictions_stay_finite_and_not_negative(
    steps: list[tuple[int, int, int, float]], seed: StepTimeModel
) -> None:
    fit = StepTimeFit(seed)
    for chunk, context, count, took_us in steps:
        shape = StepShape(((chunk, context),) if chunk else (), count, count * context)
        fit.observe(shape, took_us)
    fit.refresh()
    for shape in (StepShape(((512, 0),), 3, 1_000), StepShape((), 1, 1), StepShape(((100_000, 10**6),))):
        assert 0 <= fit.model.predict_us(shape) < float("inf")
