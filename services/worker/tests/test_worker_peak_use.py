"""The pool at its worst moment, against what happens when answers end as earlier ones did."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_common.output_lengths import MEMORY, OutputLengths
from hyperflexis_worker.steps.peak_use import PeakUse

LIMIT = 100_000


def learned(*lengths: int, tier: str = "chat") -> OutputLengths:
    known = OutputLengths()
    for length in lengths:
        known.learn(tier, length)
    return known


def running(known: OutputLengths, *held_and_made: tuple[int, int]) -> PeakUse:
    peak = PeakUse(known)
    if held_and_made:
        held, made = np.array(held_and_made, np.float64).T
        peak.add(["chat"] * len(held), held, made, np.full(len(held), float(LIMIT)))
    return peak


def least(peak: PeakUse, held: float = 0.0, made: int = 0) -> int:
    """The smallest pool that one more fits into."""
    low, high = 0, 1 << 40
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if peak.fits("chat", held, made, LIMIT, middle) else (middle, high)
    return high


def most_of(rows: list[tuple[int, int]]) -> int:
    """(held, left): everybody grows by one a step and leaves after its last."""
    moments = {0, *(left for _, left in rows)}
    return max(sum(held + moment for held, left in rows if left >= moment) for moment in moments)


@pytest.mark.parametrize("spread", ["alike", "exponential", "two kinds"])
@pytest.mark.parametrize("count", [5, 20, 100])
def test_one_time_in_twelve_it_is_exceeded_or_less_often(spread, count):
    chance = random.Random(count)
    draw = {
        "alike": lambda: chance.randint(180, 220),
        "exponential": lambda: 1 + int(chance.expovariate(1 / 200)),
        "two kinds": lambda: chance.choice([20, 20, 20, 800]),
    }[spread]
    known = learned(*(draw() for _ in range(MEMORY)))
    prompts = [chance.randint(50, 3_000) for _ in range(count)]
    made = [chance.randint(0, 100) for _ in range(count)]
    pool = least(running(known, *zip(prompts[1:], made[1:], strict=True)), prompts[0], made[0])
    needed = []
    for _ in range(400):
        rows = []
        for prompt, before in zip(prompts, made, strict=True):
            length = draw()
            while length <= before and before < 220:  # it has made so many already
                length = draw()
            rows.append((prompt, length - before))
        needed.append(most_of(rows))
    assert sum(most > pool for most in needed) / 400 <= 0.08
    assert pool <= 1.4 * np.quantile(needed, 0.95), "and not much more than that takes"


def test_who_ends_makes_room_for_those_that_last():
    """Two hundred answers of 1 to 400 tokens: not everybody's growth at the same time."""
    known = learned(*range(1, 401, 2))
    peak = running(known, *[(100, 0)] * 200)
    assert least(peak, 100) < 201 * (100 + known.mean("chat"))


def test_answers_that_are_all_alike_are_all_there_until_the_end():
    known = learned(*[300] * MEMORY)
    assert least(running(known, *[(100, 0)] * 49), 100) > 0.9 * 50 * 400


def test_one_long_answer_changes_little_for_many_short_ones():
    """Fifty that end at 300 of 2,000: in the span from 256 to 362 they count as if they had grown to its end."""
    known = learned(*[300] * (MEMORY - 1), 2_000)
    assert 50 * 400 <= least(running(known, *[(100, 0)] * 49), 100) <= 1.25 * 50 * 400


def test_nobody_grows_beyond_what_it_may():
    peak = PeakUse(learned(*[300] * (MEMORY - 1), 2_000))
    few = np.full(50, 260.0)
    peak.add(["chat"] * 50, np.full(50, 100.0), np.zeros(50), few)
    assert peak.fits("chat", 100, 0, LIMIT, 50 * 360 + 100 + 2_000)


def test_nothing_is_known_yet():
    """128 tokens each are believed in, and one cannot be sure."""
    assert 1_000 + 128 < least(running(OutputLengths()), 1_000) < 3_000


@given(
    st.lists(st.integers(1, 3_000), max_size=30),
    st.lists(st.tuples(st.integers(1, 5_000), st.integers(0, 3_500)), max_size=6),
    st.integers(1, 5_000),
)
def test_one_after_the_other_or_at_once(lengths, rows, held):
    known = learned(*lengths)
    at_once, one_by_one = running(known, *rows), running(known)
    for row in rows:
        one_by_one.fits("chat", 1.0, 0, LIMIT, 0.0)  # to be asked in between makes no difference
        one_by_one.add(["chat"], *(np.array([float(value)]) for value in (*row, LIMIT)))
    assert least(one_by_one, held) == pytest.approx(least(at_once, held), abs=1)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=30), st.integers(0, 400), st.integers(1, 5_000))
def test_whom_the_longest_answers_leave_room_fits(lengths, made, held):
    known = learned(*lengths)
    peak = running(known, (held, made))
    left = max(lengths) - made if made < max(lengths) else LIMIT - made
    assert least(peak, 10) <= held + left + 10 + max(lengths)
