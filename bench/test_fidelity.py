"""The comparison and its bootstrap, and how a twin is read off a live run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fidelity_compare import Outcome, compared, figures, p99_interval, tally
from fidelity_live import LiveRun
from fidelity_twin import delays, factors, host_us, twins

from hyperflexis_cli.plan import Planned
from hyperflexis_cli.record import Record
from hyperflexis_client import Finished, FinishReason, Verdict
from hyperflexis_common.step_time import StepTimeModel

MODEL = StepTimeModel(1_000.0, 10.0, 10.0, 0.0, 0.0, 0.0, host_us=0.0)


def served(ttft_ms: float, tier: str = "chat", attained: bool = True) -> Outcome:
    return Outcome(tier, attained, ttft_ms=ttft_ms, tpot_ms=10.0, e2e_ms=ttft_ms + 100.0)


def refused(tier: str = "chat") -> Outcome:
    return Outcome(tier, False, refused=True)


def test_counts_are_means_over_the_runs() -> None:
    row = figures([served(100.0), refused()], [served(200.0), served(300.0)])
    assert (row["requests"], row["attainment"], row["refused"], row["downgraded"]) == (2, 0.75, 0.5, 0.0)
    assert row["ttft_p50_ms"] == 200.0


def test_nothing_finished_has_no_latencies() -> None:
    row = figures([refused()])
    assert row["ttft_p99_ms"] is None and row["attainment"] == 0.0
    [chat, everything] = compared([refused()], [[refused()]])
    assert chat["p99"]["ttft"]["holds"] is None and everything["attainment_holds"]


def test_the_bootstrap_interval_covers_the_true_p99_nearly_always() -> None:
    random, true_p99, inside = np.random.default_rng(0), -np.log(0.01), 0
    for seed in range(60):
        interval = p99_interval(random.exponential(1.0, 800).tolist(), seed)
        assert interval is not None
        inside += interval[0] <= true_p99 <= interval[1]
    assert inside >= 52
    assert p99_interval([]) is None
    assert p99_interval([5.0] * 20) == (5.0, 5.0)


def test_a_seed_gives_one_interval() -> None:
    values = np.random.default_rng(1).exponential(1.0, 100).tolist()
    assert p99_interval(values, 7) == p99_interval(values, 7) != p99_interval(values, 8)


def test_rows_say_whether_both_sides_agree() -> None:
    live = [served(100.0 + i) for i in range(200)] + [served(50.0, "code", attained=i % 2 == 0) for i in range(100)]
    same = compared(live, [live, live])
    assert [row["tier"] for row in same] == ["chat", "code", "all"]
    assert tally(same) == {"attainment": {"of": 3, "hold": 3}, "p99": {"of": 9, "hold": 9}}
    worse = [served(400.0 + i) for i in range(200)] + [served(50.0, "code", attained=i % 10 == 0) for i in range(100)]
    chat, code, _ = compared(live, [worse])
    assert chat["attainment_holds"] and not chat["p99"]["ttft"]["holds"]
    assert code["attainment_off"] == pytest.approx(-0.4) and not code["attainment_holds"]
    assert chat["p99"]["ttft"]["simulated_range_ms"][0] == chat["simulated"]["ttft_p99_ms"]


def step(began_us: int, took_us: int, busy: bool = True, **more: Any) -> dict[str, Any]:
    shape = {"prefill_chunks": [[100, 0]], "decodes": 0, "decode_context_tokens": 0}
    return {"began_us": began_us, "took_us": took_us, "busy": busy, "first": [], "last": []} | shape | more


def test_steps_are_held_against_the_model() -> None:
    assert factors(MODEL, [step(0, 2_000), step(0, 3_000)]) == [(2_000.0, 1.0), (2_000.0, 1.5)]


def test_an_idle_engine_does_not_count_as_slow() -> None:
    assert host_us([step(0, 1_000), step(1_300, 1_000, busy=False), step(90_000, 1_000)]) == 300.0


def test_delays_are_read_off_both_clocks() -> None:
    record = Record(Planned(0, 0.0, 100, 3, "chat"), "r", sent_s=1.0, first_token_s=1.010, last_token_s=1.030)
    record.finished = Finished(FinishReason.LENGTH, 100, 3, Verdict.ATTAINED, 0, 0, 0, 0, "", "", 1)
    added = {"added": "r", "sent_us": 6_003_000, "arrival_us": 6_001_000}
    log = [added, step(6_004_000, 2_000, first=["r"]), step(6_026_000, 1_000, busy=False, last=["r"])]
    run = LiveRun([record], 5e6, [MODEL], [0.1], [log])
    found = delays(run)
    assert list(found.submits_us) == pytest.approx([1_000.0])
    assert found.dispatch_us == 2_000.0
    assert list(found.returns_us) == [pytest.approx((4_000.0, 3_000.0))]
    assert list(twins(run)) == ["as reported", "+ measured noise", "+ time between steps", "+ delays"]
