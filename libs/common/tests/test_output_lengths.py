"""How long answers get, as far as finished ones tell."""

from __future__ import annotations

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
