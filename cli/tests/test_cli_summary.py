"""Numbers of a replay, and the report made of them."""

from __future__ import annotations

import io
import re
from random import Random
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hyperflexis_cli.display import print_summary, progress_table
from hyperflexis_cli.figures import microseconds, milliseconds, named, share
from hyperflexis_cli.plan import Planned
from hyperflexis_cli.record import Record
from hyperflexis_cli.replay import Progress
from hyperflexis_cli.report import render_report
from hyperflexis_cli.summary import percentile, summarise
from hyperflexis_client import Finished, FinishReason, Slo, Verdict

SLO = Slo("chat", ttft_us=500_000, tpot_us=50_000, max_gap_us=250_000, weight=1.0)


def record(
    reason: FinishReason = FinishReason.LENGTH,
    *,
    tier: str = "chat",
    index: int = 0,
    tokens: int = 11,
    ttft_s: float = 0.2,
    tpot_s: float = 0.02,
    **changes: Any,
) -> Record:
    done = Record(Planned(index, 1.0 + index, 100, 11, tier), sent_s=1.0 + index, slo=SLO, output_tokens=tokens)
    done.first_token_s = done.sent_s + ttft_s if tokens else None
    done.last_token_s = done.sent_s + ttft_s + tpot_s * (tokens - 1) if tokens else None
    done.ended_s = done.sent_s + ttft_s + tpot_s * max(0, tokens - 1)
    done.finished = Finished(reason, 100, tokens, Verdict.ATTAINED, 0, 0, 0, 0, "", "", 1)
    for name, value in changes.items():
        setattr(done, name, value)
    return done


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 1))
def test_percentiles_agree_with_numpy(values: list[float], at: float) -> None:
    assert percentile(values, at) == pytest.approx(float(np.quantile(values, at)), rel=1e-9, abs=1e-6)


def test_no_values_have_no_percentile() -> None:
    assert percentile([], 0.5) is None


def test_latencies_are_the_clients() -> None:
    done = record()
    assert done.ttft_ms == pytest.approx(200)
    assert done.tpot_ms == pytest.approx(20)
    assert done.attained
    assert record(tokens=1).tpot_ms is None


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"ttft_s": 0.51}, Verdict.MISSED),
        ({"tpot_s": 0.06}, Verdict.MISSED),
        ({"tpot_s": 0.06, "tokens": 1}, Verdict.ATTAINED),
        ({"reason": FinishReason.REFUSED, "tokens": 0}, Verdict.MISSED),
        ({"reason": FinishReason.ERROR}, Verdict.MISSED),
        ({"reason": FinishReason.CANCELLED}, Verdict.EXCLUDED),
        ({"downgraded": True}, Verdict.MISSED),
        ({"repeated_tokens": 1}, Verdict.MISSED),
        ({"finished": None}, Verdict.MISSED),
        ({"slo": None}, Verdict.MISSED),
    ],
)
def test_verdicts(changes: dict[str, Any], verdict: Verdict) -> None:
    assert record(**changes).verdict is verdict


def test_lost_tokens_are_those_a_whole_request_lacks() -> None:
    assert record(tokens=11).lost_tokens == 0
    assert record(tokens=9).lost_tokens == 2
    assert record(FinishReason.ERROR, tokens=3).lost_tokens == 0
    assert record(finished=None, missing_tokens=4).lost_tokens == 4


def test_a_summary_counts_every_request_once() -> None:
    records = [
        record(index=0),
        record(index=1, ttft_s=0.9),
        record(FinishReason.REFUSED, index=2, tokens=0),
        record(index=3, tier="code", finished=None, error="Unavailable: gone", reconnections=3),
        record(FinishReason.CANCELLED, index=4, tier="code"),
        record(index=5, tokens=9),
    ]
    summary = summarise(records, 10.0, trace="t.csv")
    assert summary["requests"] == 6
    assert (summary["finished"], summary["refused"], summary["failed"]) == (3, 1, 2)
    assert (summary["lost_tokens"], summary["repeated_tokens"]) == (2, 0)
    assert summary["attained"] == 2
    assert summary["tiers"]["chat"]["attainment"] == pytest.approx(2 / 4)
    assert summary["tiers"]["code"]["attainment"] == 0.0
    assert summary["tiers"]["code"]["excluded"] == 1
    assert summary["verdicts_that_differ"] == 3
    assert summary["errors"] == ["Unavailable: gone"]
    assert summary["reconnections"] == 3
    assert summary["tokens_per_s"] == pytest.approx((11 * 4 + 9) / 10)
    assert summary["trace"] == "t.csv"
    assert set(summary["tiers"]["chat"]) >= {
        "requests", "attained", "attainment", "ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms"
    }  # fmt: skip


def test_lateness_is_reported() -> None:
    summary = summarise([record(), record(sent_s=1.25)], 1.0)
    assert summary["late_max_ms"] == pytest.approx(250)


def test_an_empty_replay_has_a_summary() -> None:
    summary = summarise([], 0.0)
    assert summary["attainment"] is None and summary["tiers"] == {}


def made_up(count: int = 60) -> list[Record]:
    random = Random(5)
    tiers = ["chat", "<b>&"]
    return [
        record(index=i, tier=tiers[i % 2], ttft_s=random.lognormvariate(-2, 1), tpot_s=random.random() / 20)
        for i in range(count)
    ]


def page_of(records: list[Record], **about: str) -> str:
    return render_report(records, summarise(records, 30.0), about, "A <title>")


def test_the_report_is_one_file_that_needs_nothing_else() -> None:
    page = page_of(made_up(), Workload="a & b")
    assert page.count("<svg") == 4
    assert not re.search(r'(src|href)="https?:', page)
    assert "<script" not in page
    assert "a &amp; b" in page and "A &lt;title&gt;" in page
    assert "<b>&<" not in page
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)


def test_the_plots_follow_the_pages_colours() -> None:
    page = page_of(made_up())
    assert "var(--ink)" in page and "var(--grid)" in page
    assert "#0a0b0c" not in page and "#0d0e0f" not in page
    assert "prefers-color-scheme: dark" in page
    assert "objective" in page


def test_reports_without_measurements_render() -> None:
    assert "<svg" not in page_of([])
    page_of([record(FinishReason.REFUSED, tokens=0)])
    page_of([record(slo=None, finished=None, tokens=0)])


def test_the_table_fits_a_terminal() -> None:
    console = Console(width=88, file=io.StringIO(), record=True)
    print_summary(console, summarise(made_up(), 30.0))
    text = console.export_text()
    assert "…" not in text
    assert "/30" in text


def test_the_live_table_shows_what_runs() -> None:
    progress = Progress(planned=5, elapsed_s=3.0, running=1, records=[record(), record(ended_s=None, finished=None)])
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(progress_table(progress))
    assert "1 of 5 done, 1 running" in console.export_text()


def test_figures_read_well() -> None:
    assert [milliseconds(v) for v in (None, 3.14159, 250.4, 1_234.0, 15_000.0)] == [
        "-",
        "3.1 ms",
        "250 ms",
        "1,234 ms",
        "15.0 s",
    ]
    assert microseconds(1_500) == "1.5 ms"
    assert share(0.9731) == "97.3 %"
    assert named("predicted_ttft_us", 35_000.0) == "predicted_ttft 35.0 ms"
    assert named("queued_tokens", 12_000.0) == "queued_tokens 12,000"
    assert named("weight", 0.25) == "weight 0.25"
