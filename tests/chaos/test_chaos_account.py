"""The suite's own account: a fault that did nothing, a request that nobody answers for, a silence, are all seen."""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import pytest

sys.path.append(str(Path(__file__).parent))

import run
from chaos import Chaos
from faults import FAULTS, endless
from move_count import MoveCount
from prompts import prompts_for
from reading import Prompt, Reading
from remains import Remains
from summary import DAMAGE, sum_of, summary_of, verdict_of
from tally import Silences, Tally

from hyperflexis_client import Unavailable

ONE = {"faults": {"run_lost": 1}}


class NoPause:
    async def pause(self, low_s: float, high_s: float) -> None: ...


def reading(tally: Tally) -> Reading:
    class Generation:
        request_id = "q"
        finished = None

    return Reading(tally, cast("Any", Generation()), Prompt((1,), 0, (2,)))


@pytest.mark.parametrize("answers", [[True], [False, True], [False, False]])
async def test_a_fault_is_tried_twice_at_most(answers: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []

    async def fault(chaos: Chaos) -> bool:
        made.append(answers[len(made)])
        return made[-1]

    monkeypatch.setitem(FAULTS, "kill_worker", cast("Awaitable[bool]", fault))
    assert await run.make(cast("Any", NoPause()), "kill_worker", 0.1) is answers[-1]
    assert made == answers


def test_a_run_that_misses_its_faults_fails() -> None:
    for missed, fails in ((5, False), (6, True)):
        summary = summary_of(
            Tally(), {"faults": {"run_lost": 100 - missed}, "not_fired": {"run_lost": missed}}, Remains()
        )
        assert bool(verdict_of(summary)) is fails


@pytest.mark.parametrize("key", DAMAGE)
def test_each_count_of_damage_fails_the_run(key: str) -> None:
    summary = summary_of(Tally(), ONE, Remains())
    assert verdict_of(summary) == []
    assert verdict_of(summary | {key: 1}) == [f"{key}: 1"]
    assert verdict_of(sum_of([summary, summary | {key: 1}], [0.1])) == [f"{key}: 1"]


async def test_whatever_is_raised_ends_a_request_once() -> None:
    tally = Tally()
    for error in (Unavailable("no router"), KeyError("a bug"), TimeoutError()):
        async with reading(tally):
            raise error
    async with reading(tally):
        pass  # read, and no Finished came
    async with reading(tally) as one:
        one.cancelled()
    assert (tally.requests, tally.failed_requests, tally.stuck_requests, tally.cancelled) == (5, 3, 1, 1)
    assert tally.unaccounted == 0
    reading(tally)
    assert tally.unaccounted == 1


def test_silences_leave_out_what_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("tally.time.monotonic", lambda: now)
    silences = Silences()
    with silences.excused():
        assert silences.counting_s(90.0, 140.0) == 10.0
        now = 130.0
    # Its aftermath ends at 135.
    assert silences.counting_s(90.0, 140.0) == 15.0
    assert silences.counting_s(110.0, 120.0) == 0.0
    assert silences.counting_s(136.0, 170.0) == 34.0


def test_slow_is_told_and_stalled_is_damage() -> None:
    tally = Tally()
    for counted_s in (1.0, 21.0, 31.0):
        tally.silences.add(50.0, counted_s)
    summary = summary_of(tally, ONE, Remains())
    assert (summary["slow_requests"], summary["stalled_requests"]) == (2, 1)
    assert summary["latency"] == {"p50_gap_s": 50.0, "p99_gap_s": 50.0, "max_gap_s": 50.0}
    assert verdict_of(summary) == ["stalled_requests: 1"]


def test_a_run_that_was_to_see_moves_fails_without_them() -> None:
    def summary(done: int) -> dict[str, Any]:
        by_kind = {**ONE, "moves": {"hand_offs": 4, "migrations": done - 4}}
        return summary_of(Tally(), by_kind, Remains(), moves_wanted=10)

    assert verdict_of(summary(10)) == []
    assert verdict_of(summary(9)) == ["9 of 10 moves were done"]
    assert verdict_of(sum_of([summary(4), summary(6)], [], moves_wanted=10)) == []


def test_moves_are_counted_once_whoever_leads() -> None:
    def text(done: int, flips: int = 0) -> str:
        counter = 'hyperflexis_scheduler_moves_{}_total{{reason="{}"}} {:.1f}\n'
        return counter.format("done", "operator", done) + counter.format("failed", "no_link", flips)

    count = MoveCount({"a": 1, "b": 2})
    for name, told in (("a", text(3)), ("b", ""), ("a", text(5, 1)), ("a", ""), ("b", text(1)), ("a", text(2, 1))):
        count.take(name, told)  # a leads, then b, then a again
    count.take("b", text(4))
    count.take("b", text(2))  # a new leader that was quick
    assert dict(count.done) == {"migrations": 5 + 2 + 4 + 2}
    assert dict(count.failed) == {"no_link": 2}


def test_prefixes_read_are_counted_over_the_lives_of_a_worker() -> None:
    def text(read: int, slow: int) -> str:
        counter = 'hyperflexis_worker_prefix_pulls_total{{outcome="{}"}} {:.1f}\n'
        return counter.format("read", read) + counter.format("timeout_reading", slow)

    count = MoveCount({"w": 1})
    for told in (text(2, 0), text(3, 1), text(1, 0)):
        count.take("w", told)
    assert dict(count.pulls) == {"read": 3 + 1, "timeout_reading": 1} and not count.done and not count.failed


async def test_every_second_prompt_begins_with_a_document_and_each_document_begins_several() -> None:
    class Cell:
        engine = "modelled"

    prompts = await prompts_for(cast("Any", Cell()), seed=3, documents=8)
    sharing = [prompt.token_ids[:700] for prompt in prompts if len(prompt.token_ids) >= 700]
    assert len(prompts) == 64 and len(sharing) == 31
    assert sorted(sharing.count(beginning) for beginning in set(sharing)) == [3] + [4] * 7
    assert all(len(prompt.token_ids) < 700 for prompt in prompts if len(prompt.reference) == 1_000)
    assert not [p for p in await prompts_for(cast("Any", Cell()), seed=3) if len(p.token_ids) >= 700]


def test_a_run_with_documents_fails_where_nothing_was_read() -> None:
    def summary(read: int) -> dict[str, Any]:
        pulls = {"read": read, "no_more_there": 7}
        return summary_of(Tally(), {**ONE, "pulls": pulls}, Remains(), documents=4)

    assert verdict_of(summary(10)) == []
    assert verdict_of(summary(9)) == ["9 prefixes were read from peers, not 10"]


def test_kinds_come_again_and_again_each_as_often() -> None:
    names = endless(["a", "a", "b"], seed=1)
    seen = [next(names) for _ in range(30)]
    assert seen.count("a") == 20 and {tuple(sorted(seen[at : at + 3])) for at in range(0, 30, 3)} == {("a", "a", "b")}
