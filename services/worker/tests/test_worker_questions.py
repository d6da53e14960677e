"""Whose question an answer answers."""

from __future__ import annotations

import itertools

from hyperflexis_worker.core.questions import Questions


def test_of_each_owner_only_the_question_asked_last_counts() -> None:
    questions: Questions[str] = Questions(itertools.count(1))
    first, other, second = questions.ask("a"), questions.ask("b"), questions.ask("a")
    assert len({first, other, second}) == 3
    assert questions.answered(first) is None
    assert questions.answered(second) == "a"
    assert questions.answered(second) is None, "an answer counts once"
    assert questions.answered(other) == "b"


def test_an_owner_that_wants_nothing_any_more_hears_nothing() -> None:
    questions: Questions[str] = Questions(itertools.count(1))
    number = questions.ask("a")
    questions.drop("a")
    questions.drop("a")
    assert questions.answered(number) is None


def test_two_that_share_numbers_do_not_take_each_others_answers() -> None:
    numbers = itertools.count(1)
    ours: Questions[str] = Questions(numbers)
    theirs: Questions[str] = Questions(numbers)
    number = ours.ask("a")
    assert theirs.ask("a") != number
    assert theirs.answered(number) is None
    assert ours.answered(number) == "a"
