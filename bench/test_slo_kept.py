"""Kept results: what replaces what, and what the tables make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import slo_kept
from slo_tables import attainment_table, latency_table

Row = dict[str, Any]


def row(policy: str, attainment: float, load: float = 1.0, seed: int = 0, tier: str = "all", **more: Any) -> Row:
    about = {"trace": "mix_poisson", "profile": "h200/m/tp1", "workers": 4, "load": load, "policy": policy}
    latencies = {f"{name}_ms": 10.0 for name in ("ttft_p50", "ttft_p99", "e2e_p50", "e2e_p99", "gap_p99")}
    rest = {"seed": seed, "tier": tier, "attainment": attainment, "token_deadline_attainment": attainment}
    return about | rest | latencies | more


def test_a_run_replaces_all_tiers_of_the_same_run_and_no_other() -> None:
    kept = [row("a", 0.1), row("a", 0.2, tier="chat"), row("a", 0.3, seed=1), row("b", 0.4)]
    found = slo_kept.merged(kept, [row("a", 0.9)])
    assert [(each["policy"], each["seed"], each["tier"], each["attainment"]) for each in found] == [
        ("a", 0, "all", 0.9),
        ("a", 1, "all", 0.3),
        ("b", 0, "all", 0.4),
    ]


def test_tiers_are_kept_where_latencies_are_judged() -> None:
    new = [row("a", 0.5, load, tier=tier) for load in (1.0, 2.0) for tier in ("chat", "all")]
    found = slo_kept.merged([], new)
    assert [(each["load"], each["tier"]) for each in found] == [(1.0, "chat"), (1.0, "all"), (2.0, "all")]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    document = {"about": "x", "capacities": [], "bounds": [], "rows": slo_kept.merged([], [row("a", 0.5, pulled=None)])}
    slo_kept.write(path, document)
    assert slo_kept.read(path) == document and "pulled" not in document["rows"][0]
    path.write_text('{"rows": []}', encoding="utf-8")
    with pytest.raises(ValueError, match="capacities, bounds missing"):
        slo_kept.read(path)


def test_the_best_is_bold_and_ours_has_its_interval() -> None:
    rows = [row("hyperflexis", 0.80 + seed / 100, seed=seed) for seed in range(3)] + [row("jsq+scorpio", 0.5)]
    line = attainment_table(rows)[2]
    assert line.startswith("| mix, Poisson, 4 H200 | 1 | **.810 ±.0") and "| .500 |" in line


def test_latencies_are_those_of_load_1_by_tier() -> None:
    rows = [
        row("hyperflexis", 0.8),
        row("hyperflexis", 0.8, tier="chat", ttft_p99_ms=1234.0),
        row("hyperflexis", 0, 2.0),
    ]
    assert "| 10 | 10 | 1,234 |  |  |  | 10 | 10 | 10 | .800 |" in latency_table(rows)[2]
