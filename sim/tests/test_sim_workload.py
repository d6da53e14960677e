"""Traces and mixes as workloads."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest

from hyperflexis_sim.tiers import FOUR_TASKS, promise, read_tiers
from hyperflexis_sim.workload import MAX_TOKENS, draw_mix, from_trace

LENGTHS = {name: [(10 * (index + 1), index + 1)] for index, name in enumerate(FOUR_TASKS)}


@dataclass
class Row:
    arrival_s: float
    prompt_tokens: int = 100
    output_tokens: int = 10
    tier: str = ""


def test_a_mix_has_the_rate_the_shares_and_each_task_its_lengths():
    workload = draw_mix(LENGTHS, FOUR_TASKS, rate=50.0, seconds=100.0, seed=0)
    assert len(workload.tier) == 5_000
    assert workload.rate == pytest.approx(50, rel=0.05)
    for index, name in enumerate(FOUR_TASKS):
        own = np.array([tier == name for tier in workload.tier])
        assert own.mean() == pytest.approx(0.25, abs=0.03)
        assert set(workload.prompt_tokens[own]) == {10 * (index + 1)}


@pytest.mark.parametrize("cv", [1.0, 3.0])
def test_arrivals_have_their_coefficient_of_variation(cv):
    gaps_s = np.diff(draw_mix(LENGTHS, FOUR_TASKS, 50.0, 800.0, seed=1, cv=cv).arrival_s)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.07)


def test_a_seed_gives_one_mix():
    one, other = (draw_mix(LENGTHS, FOUR_TASKS, 50.0, 5.0, seed=2) for _ in range(2))
    assert (one.arrival_s == other.arrival_s).all() and one.tier == other.tier
    assert draw_mix(LENGTHS, FOUR_TASKS, 50.0, 5.0, seed=3).tier != one.tier


def test_a_rate_compresses_time_and_nothing_else():
    workload = from_trace([Row(float(at)) for at in range(11)], FOUR_TASKS, 0)
    faster = workload.at_rate(4.0)
    assert workload.rate == 1.0 and faster.rate == pytest.approx(4.0)
    assert faster.arrival_s[-1] == pytest.approx(2.5)
    assert faster.tier == workload.tier


def test_within_keeps_what_arrives_before():
    workload = from_trace([Row(float(at), prompt_tokens=at + 1) for at in range(11)], FOUR_TASKS, 0).within(3.0)
    assert workload.prompt_tokens.tolist() == [1, 2, 3]
    assert len(workload.tier) == len(workload.tenant) == len(workload.output_tokens) == 3


def test_a_trace_keeps_its_own_tiers_and_the_rest_is_drawn_by_share():
    promises = {"a": promise("a", 100, 10, share=3), "b": promise("b", 100, 10)}
    rows = [Row(float(at), tier="b" if at < 100 else "") for at in range(2_100)]
    tiers = from_trace(rows, promises, 0).tier
    assert set(tiers[:100]) == {"b"}
    assert tiers[100:].count("a") / 2_000 == pytest.approx(0.75, abs=0.04)


def test_a_tier_that_nobody_promised_is_an_error():
    with pytest.raises(ValueError, match="names tier 'vip'; promised are chat, code"):
        from_trace([Row(0.0, tier="vip")], FOUR_TASKS, 0)


def test_jitter_spreads_what_shares_a_timestamp_and_keeps_the_order():
    rows = [Row(0.0)] * 50 + [Row(3.0)] * 50
    plain, spread = (from_trace(rows, FOUR_TASKS, 0, jitter=jitter).arrival_s for jitter in (False, True))
    assert len(np.unique(plain)) == 2
    assert len(np.unique(spread)) == 51, "after the last timestamp there is nothing to spread over"
    assert (np.diff(spread) >= 0).all()
    assert spread[:50].max() < 3.0


def test_requests_carry_their_promise_and_are_made_anew():
    workload = from_trace([Row(2.0, 300, 7, "code")], FOUR_TASKS, 0)
    first, again = workload.requests(FOUR_TASKS), workload.requests(FOUR_TASKS)
    request = first[0]
    assert request is not again[0]
    assert (request.arrival_us, request.prompt_tokens, request.output_tokens) == (2e6, 300, 7)
    assert (request.ttft_us, request.tpot_us, request.due_us) == (5e5, 3e4, 2.5e6)
    assert request.max_tokens == MAX_TOKENS


def test_tiers_are_read_with_their_shares(tmp_path):
    path = tmp_path / "tiers.yaml"
    path.write_text("tiers:\n  - {name: a, ttft_ms: 200, tpot_ms: 100, share: 2}\n")
    assert read_tiers(path)["a"].share == 2
    assert read_tiers(path)["a"].max_gap_us == 4e5
    path.write_text("tiers:\n  - {name: a, ttft_ms: 200, tpot_ms: -1}\n")
    with pytest.raises(ValueError, match=r"tiers\.yaml: tiers\.0\.tpot_ms"):
        read_tiers(path)
    with pytest.raises(ValueError, match="cannot read"):
        read_tiers(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("tiers", "message"),
    [
        ("[{name: a, ttft_ms: 5, tpot_ms: 5}, {name: a, ttft_ms: 9, tpot_ms: 9}]", "tier 'a' is there twice"),
        ("[{name: all, ttft_ms: 5, tpot_ms: 5}]", "no tier can be called 'all'"),
        ("[{name: '', ttft_ms: 5, tpot_ms: 5}]", "tiers.0.name"),
        ("[{name: a, ttft_ms: .inf, tpot_ms: 5}]", "tiers.0.ttft_ms"),
        ("[{name: a, ttft_ms: 1e17, tpot_ms: 5}]", "tiers.0.ttft_ms"),
        ("[{name: a, ttft_ms: 5, tpot_ms: 5, share: .inf}]", "tiers.0.share"),
        (
            "[{name: a, ttft_ms: 5, tpot_ms: 5, on_violation: 'downgrade:b'}]",
            "'a' falls to 'b', which is not a tier; tiers are a",
        ),
        ("[]", "names no tiers"),
        ("", "tiers: "),
    ],
)
def test_tiers_that_cannot_be_say_why(tmp_path, tiers, message):
    path = tmp_path / "tiers.yaml"
    path.write_text(f"tiers: {tiers}\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        read_tiers(path)
