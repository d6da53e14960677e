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
from faults import FAULTS
from reading import Prompt, Reading
from remains import Remains
from summary import DAMAGE, sum_of, summary_of, verdict_of
from tally import Silences, Tally

from hyperflexis_client import Unavailable

NONE: Any = {}


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
        summary = summary_of(Tally(), {"run_lost": 100 - missed}, {"run_lost": missed}, Remains())
        assert bool(verdict_of(summary)) is fails


@pytest.mark.parametrize("key", DAMAGE)
def test_each_count_of_damage_fails_the_run(key: str) -> None:
    summary = summary_of(Tally(), {"run_lost": 1}, NONE, Remains())
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
    summary = summary_of(tally, {"run_lost": 1}, NONE, Remains())
    assert (summary["slow_requests"], summary["stalled_requests"]) == (2, 1)
    assert summary["latency"] == {"p50_gap_s": 50.0, "p99_gap_s": 50.0, "max_gap_s": 50.0}
    assert verdict_of(summary) == ["stalled_requests: 1"]
