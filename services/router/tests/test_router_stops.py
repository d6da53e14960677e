"""Stop strings across borders, with hold-back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_router.core.stops import StopStrings

alphabet = st.sampled_from("ab")


@given(
    st.lists(st.text(alphabet, max_size=4), max_size=12),
    st.lists(st.text(alphabet, min_size=1, max_size=4), max_size=3),
)
def test_pieces_give_the_same_as_a_letter_at_a_time(pieces: list[str], stops: list[str]) -> None:
    by_letter = StopStrings(stops)
    letters = "".join(by_letter.push(letter) for piece in pieces for letter in piece)
    by_piece = StopStrings(stops)
    shown = "".join(map(by_piece.push, pieces))
    if by_letter.matched is None:
        assert by_piece.matched is None
        assert shown + by_piece.flush() == letters + by_letter.flush() == "".join(pieces)
    else:
        assert by_piece.matched is not None
        # A piece may complete two stop strings at once; the one that begins first ends the text.
        assert letters.startswith(shown)


@pytest.mark.parametrize(
    ("pieces", "shown", "matched"),
    [
        (["hello <", "/s", ">x"], ["hello ", "", ""], "</s>"),
        (["a<", "b"], ["a", "<b"], None),
        (["ab", "c</s>"], ["ab", "c"], "</s>"),
        (["<<", "/s>"], ["<", ""], "</s>"),
    ],
)
def test_hold_back(pieces: list[str], shown: list[str], matched: str | None) -> None:
    stops = StopStrings(["</s>"])
    assert [stops.push(piece) for piece in pieces] == shown
    assert stops.matched == matched


def test_the_longer_of_two_stops_at_one_place_wins() -> None:
    stops = StopStrings(["a", "ab"])
    assert stops.push("xab") == "x"
    assert stops.matched == "ab"


def test_nothing_follows_a_match() -> None:
    stops = StopStrings(["."])
    stops.push("one. two")
    assert stops.push("three") == ""
    assert stops.flush() == ""
