"""Rows of scores, and intervals over seeds."""

from __future__ import annotations

import pytest

from hyperflexis_sim.interval import half_width_95
from hyperflexis_sim.request import FINISHED, REFUSED, SimRequest
from hyperflexis_sim.score import by_prompt_length, scores


def request(tier: str = "a", first_ms: float | None = 50.0, tpot_ms: float = 10.0, made: int = 11, prompt: int = 100):
    """Promised: 100 ms to the first token, 10 ms for each further one; refused where first_ms is None."""
    one = SimRequest(0, 1e6, tier, "", prompt, made, 1e5, 1e4, 2.5e5, 1.0, 100)
    if first_ms is None:
        one.state = REFUSED
        return one
    one.state, one.made = FINISHED, made
    one.first_us = one.arrival_us + first_ms * 1e3
    one.last_us = one.first_us + (made - 1) * tpot_ms * 1e3
    one.worst_gap_us = tpot_ms * 1e3 if made > 1 else 0.0
    return one


def test_the_verdict_is_about_first_token_and_mean_of_the_others():
    assert request().attained
    assert not request(first_ms=100.1).attained
    assert not request(tpot_ms=10.1).attained
    assert request(made=1, tpot_ms=99).attained, "one token has no time per further token"
    assert not request(first_ms=None).attained
    downgraded = request()
    downgraded.downgraded_from = ("a",)
    assert not downgraded.attained


def test_a_row_per_tier_and_one_for_all():
    requests = [request("b"), request("a"), request("a", first_ms=200), request("a", first_ms=None)]
    a, b, everything = scores(requests, 2.0)
    assert (a["tier"], b["tier"], everything["tier"]) == ("a", "b", "all")
    assert (a["requests"], a["attained"], a["refused"], a["unfinished"]) == (3, 1, 1, 0)
    assert a["attainment"] == pytest.approx(1 / 3)
    assert everything["goodput_rps"] == 1.0
    assert b["ttft_p50_ms"] == pytest.approx(50) and b["e2e_p99_ms"] == pytest.approx(150)
    assert b["tpot_p99_ms"] == pytest.approx(10) == b["gap_p99_ms"]


def test_a_downgraded_request_counts_where_it_was_promised():
    one = request("a")
    one.tier, one.downgraded_from = "b", ("a",)
    assert [(row["tier"], row["downgraded"], row["attained"]) for row in scores([one], 1.0)] == [
        ("a", 1, 0),
        ("all", 1, 0),
    ]


def test_percentiles_are_null_where_nothing_finished():
    row = scores([request(first_ms=None)], 1.0)[-1]
    assert row["ttft_p50_ms"] is row["tpot_p99_ms"] is row["e2e_p99_ms"] is row["gap_p99_ms"] is None


def test_token_deadlines_count_only_what_finished_without_a_late_token():
    late = request()
    late.late_tokens = 1
    row = scores([request(), late, request(first_ms=None)], 1.0)[-1]
    assert row["token_deadline_attainment"] == pytest.approx(1 / 3)


def test_attainment_by_length_and_weighted_by_tokens():
    requests = [request(prompt=89), request(prompt=989, first_ms=500)]
    assert [row["attainment"] for row in by_prompt_length(requests, [500])] == [1.0, 0.0]
    assert scores(requests, 1.0)[-1]["token_weighted_attainment"] == pytest.approx(100 / 1_100)


def test_an_interval_needs_two_values():
    assert half_width_95([0.5]) == 0.0
    assert half_width_95([0.0, 1.0, 0.0, 1.0, 0.5]) == pytest.approx(2.78 * 0.5 / 5**0.5)
