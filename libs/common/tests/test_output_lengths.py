"""How long answers get, as far as finished ones tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_common.output_lengths import MEMORY, PRIOR_TOKENS, OutputLengths


def test_nothing_known_is_the_prior_and_one_answer_is_half_of_it() -> None:
    lengths = OutputLengths()
    assert lengths.mean("chat") == PRIOR_TOKENS
    lengths.learn("chat", 28)
    assert lengths.mean("chat") == (PRIOR_TOKENS + 28) / 2 and lengths.mean("code") == PRIOR_TOKENS


def test_what_was_long_ago_is_forgotten() -> None:
    lengths = OutputLengths()
    for _ in range(2_000):
        lengths.learn("chat", 500)
    for _ in range(5 * MEMORY):
        lengths.learn("chat", 20)
    assert lengths.mean("chat") == pytest.approx(20, abs=5)


@given(st.integers(1, 5_000), st.integers(0, 4_000), st.integers(0, 4_000))
def test_one_and_many_are_reckoned_alike(answer: int, made: int, more: int) -> None:
    lengths = OutputLengths()
    lengths.learn("chat", answer)
    mean, limit = np.array([lengths.mean("chat")]), made + more
    many = lengths.remaining_of(mean, np.array([float(made)]), np.array([float(limit)]))
    assert many[0] == lengths.remaining("chat", made, limit)


AHEAD = np.array([0.0, 1.0, 7.0, 100.0])
LENGTHS = st.lists(st.integers(1, 300), max_size=40)


@given(LENGTHS, st.lists(st.tuples(st.integers(0, 300), st.integers(1, 400)), min_size=1, max_size=5))
def test_who_outlasts_what_is_a_share_of_those_that_came_so_far(seen, rows):
    lengths = OutputLengths()
    for length in seen:
        lengths.learn("chat", length)
    made, limits = [float(made) for made, _ in rows], [float(made + more) for made, more in rows]
    found = lengths.outlasting(["chat"] * len(rows), np.array(made), np.array(limits), AHEAD)
    for at, (before, limit) in enumerate(zip(made, limits, strict=True)):
        for k, ahead in enumerate(AHEAD):
            longer = sum(length > before + ahead for length in seen) + math.exp(-ahead / lengths.mean("chat"))
            share = longer / (sum(length > before for length in seen) + 1)
            assert found[at, k] == pytest.approx(share if before + ahead < limit else 0.0)
    assert (found[:, 0] == 1).all(), "whoever runs is there now"


def test_tiers_are_told_apart_and_old_answers_forgotten():
    lengths = OutputLengths()
    for _ in range(MEMORY):
        lengths.learn("chat", 1_000)
    for tokens in [10] * MEMORY:
        lengths.learn("chat", tokens)
    lengths.learn("code", 500)
    made, limits = np.zeros(3), np.full(3, 5_000.0)
    found = lengths.outlasting(["chat", "code", "other"], made, limits, np.array([0.0, 100.0]))
    assert found[0, 1] < 0.01 and found[1, 1] > 0.5 and found[2, 1] == pytest.approx(math.exp(-100 / PRIOR_TOKENS))
    assert lengths.most(["chat", "code", "other"], made, limits).tolist() == [10, 500, 5_000]
    assert lengths.most(["chat"], np.array([10.0]), np.array([400.0])).tolist() == [390], "longer than any"
