"""From traces and mixes to the requests of a replay."""

from __future__ import annotations

import math
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_cli.calibration import Capacity
from hyperflexis_cli.mix import LEVELS, TRAFFIC, draw_mix, quantile
from hyperflexis_cli.plan import Shape, fit, parse_tier_mix, plan
from hyperflexis_cli.trace import TraceRow
from hyperflexis_cli.workload import LOAD, Pace, Workload, built_in_workload, trace_workload

ROWS = [TraceRow(second / 10, 100 + second, 10) for second in range(100)]


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(2, 10**5))
def test_fitted_lengths_fit_and_change_only_where_they_must(prompt: int, output: int, context: int) -> None:
    fitted = fit(prompt, output, context)
    assert sum(fitted) <= context
    assert min(fitted) >= 1
    assert fitted[0] <= prompt and fitted[1] <= output
    if prompt + output <= context:
        assert fitted == (prompt, output)
    else:
        assert sum(fitted) == context
        assert fitted[1] >= min(output, context // 2)


def test_arrivals_are_compressed_and_cut() -> None:
    planned = plan(ROWS, Shape(context_length=2_048, speed=2.0, duration_s=2.5), Random(0))
    assert len(planned) == 50
    assert planned[-1].at_s == pytest.approx(2.45)
    assert [request.index for request in planned] == list(range(50))


def test_lengths_are_scaled_and_clipped() -> None:
    planned = plan([TraceRow(0, 1_000, 1), TraceRow(0, 10, 1)], Shape(context_length=256, scale_lengths=0.5), Random(0))
    assert [(p.prompt_tokens, p.output_tokens, p.clipped) for p in planned] == [(255, 1, True), (5, 1, False)]


def test_thinning_keeps_the_share_and_the_times() -> None:
    rows = [TraceRow(float(second), 1, 1) for second in range(5_000)]
    planned = plan(rows, Shape(context_length=16, keep=0.3), Random(1))
    assert 0.27 < len(planned) / len(rows) < 0.33
    assert {p.at_s for p in planned} <= {row.arrival_s for row in rows}


def test_tiers_come_from_the_mix_where_one_is_given() -> None:
    rows = [TraceRow(0.0, 1, 1, "own")] * 4_000
    drawn = [p.tier for p in plan(rows, Shape(context_length=16, tier_mix={"a": 3, "b": 1}), Random(2))]
    assert 0.72 < drawn.count("a") / len(drawn) < 0.78
    assert {p.tier for p in plan(rows, Shape(context_length=16), Random(2))} == {"own"}


def test_the_same_seed_plans_the_same() -> None:
    shape = Shape(context_length=256, keep=0.5, tier_mix={"a": 1, "b": 1})
    assert plan(ROWS, shape, Random(7)) == plan(ROWS, shape, Random(7)) != plan(ROWS, shape, Random(8))


def test_tier_mixes_are_read() -> None:
    assert parse_tier_mix(" chat=0.5, code=2 ,") == {"chat": 0.5, "code": 2.0}


@pytest.mark.parametrize("text", ["", "chat", "chat=", "chat=x", "=1", "chat=-1", "chat=0", "chat=nan", "a=1,a=2"])
def test_bad_tier_mixes_say_how_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match="tier mix"):
        parse_tier_mix(text)


@given(st.sampled_from(TRAFFIC), st.floats(0, 1))
def test_drawn_lengths_lie_between_their_quantiles(kind: object, level: float) -> None:
    quantiles = kind.prompt_quantiles  # type: ignore[attr-defined]
    upper = next(index for index, at in enumerate(LEVELS) if level <= at)
    low, high = quantiles[max(0, upper - 1)], quantiles[upper]
    assert low <= quantile(quantiles, level) <= high


def test_the_mix_has_the_medians_and_shares_it_claims() -> None:
    rows = draw_mix(20_000, Random(3))
    for kind in TRAFFIC:
        members = sorted(row.prompt_tokens for row in rows if row.tier == kind.tier)
        assert abs(len(members) / len(rows) - kind.share) < 0.015
        assert members[len(members) // 2] == pytest.approx(kind.prompt_quantiles[LEVELS.index(0.5)], rel=0.06)
    assert rows[-1].arrival_s == pytest.approx(len(rows), rel=0.05)


def test_quantiles_never_fall() -> None:
    for kind in TRAFFIC:
        assert list(kind.prompt_quantiles) == sorted(kind.prompt_quantiles)
        assert list(kind.output_quantiles) == sorted(kind.output_quantiles)
    assert sum(kind.share for kind in TRAFFIC) == pytest.approx(1.0)


def test_the_built_in_workload_fits_the_small_models_context() -> None:
    workload = built_in_workload(seed=0, count=2_000)
    shape = workload.shape(2_048)
    planned = plan(workload.rows, shape, Random(0))
    assert shape.scale_lengths < 1
    assert sum(p.clipped for p in planned) / len(planned) == pytest.approx(0.01, abs=0.005)
    assert workload.shape(10**6).scale_lengths == 1.0


def test_a_rich_trace_is_thinned_and_a_poor_one_compressed() -> None:
    workload = Workload(ROWS, {}, "ten a second")
    slow = Pace.of(workload, Capacity(tokens_per_s=500.0, tokens_per_request=100.0), thin=True)
    assert slow.speed == 1.0
    assert slow.keep == pytest.approx(LOAD * 5 / 10)
    fast = Pace.of(workload, Capacity(5_000.0, 100.0), thin=True)
    assert fast.keep == 1.0
    assert fast.speed == pytest.approx(LOAD * 50 / 10)
    assert math.isclose(fast.requests_per_s, LOAD * 50)


def test_a_trace_without_tiers_gets_those_of_the_mix(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n2,1,1\n")
    workload = trace_workload(path)
    assert workload.tier_mix == {kind.tier: kind.share for kind in TRAFFIC}
    assert workload.requests_per_s == 0.5
    path.write_text("arrival_s,prompt_tokens,output_tokens,tier\n0,1,1,gold\n")
    assert trace_workload(path).tier_mix == {}
