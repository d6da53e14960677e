"""Kept results: what replaces what, and what the tables make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import slo_kept
from slo_tables import attainment_table, bound_table, latency_table, target_table, write_plots

Row = dict[str, Any]


def row(policy: str, attainment: float, load: float = 1.0, seed: int = 0, tier: str = "all", **more: Any) -> Row:
    about = {"trace": "mix_poisson", "profile": "h200/m/tp1", "workers": 4, "load": load, "policy": policy}
    latencies = {f"{name}_ms": 10.0 for name in ("ttft_p50", "ttft_p99", "e2e_p50", "e2e_p99", "gap_p99")}
    rest = {"seed": seed, "tier": tier, "attainment": attainment, "token_deadline_attainment": attainment}
    return about | rest | latencies | more


def test_a_run_replaces_all_tiers_and_seeds_of_its_point_and_nothing_else() -> None:
    kept = [row("a", 0.1), row("a", 0.2, tier="chat"), row("a", 0.3, seed=1), row("a", 0.5, 2.0), row("b", 0.4)]
    found = slo_kept.merged(kept, [row("a", 0.9)])
    assert [(each["load"], each["policy"], each["attainment"]) for each in found] == [
        (1.0, "a", 0.9),
        (1.0, "b", 0.4),
        (2.0, "a", 0.5),
    ]


def test_capacities_are_kept_and_new_ones_added() -> None:
    kept = [{"trace": "x", "profile": "h200/m/tp1", "workers": 4, "rate_rps": 9.0}]
    new = [kept[0] | {"rate_rps": 8.0}, kept[0] | {"workers": 16, "rate_rps": 36.0}]
    assert [each["rate_rps"] for each in slo_kept.capacities(kept, new)] == [9.0, 36.0]


def test_tiers_are_kept_where_latencies_are_judged() -> None:
    new = [row("a", 0.5, load, tier=tier) for load in (1.0, 2.0) for tier in ("chat", "all")]
    found = slo_kept.merged([], new)
    assert [(each["load"], each["tier"]) for each in found] == [(1.0, "chat"), (1.0, "all"), (2.0, "all")]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    rows = slo_kept.merged([], [row("a", 0.5, pulled_share=None)])
    document = {"about": "x", "capacities": [], "bounds": [], "rows": rows}
    slo_kept.write(path, document)
    assert slo_kept.read(path) == document and "pulled_share" not in rows[0]
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


def test_bounds_are_those_of_the_same_point() -> None:
    bound = {
        "trace": "mix_poisson",
        "profile": "h200/m/tp1",
        "workers": 4,
        "load": 2.0,
        "fluid": 0.8,
        "clairvoyant": 1.0,
    }
    rows = [row("hyperflexis", 0.6, 2.0), row("hyperflexis", 0.9, 1.0), row("jsq+scorpio", 0.1, 2.0)]
    assert bound_table(rows, [bound])[2:] == ["| mix, Poisson, 4 H200 | 2 | .600 | .800 | 75.0 % | 1.000 | 60.0 % |"]


def test_what_nothing_decides_is_in_no_table() -> None:
    holds = {"target": "a", "holds": False, "points": 2, "missed": 1, "worst": "x"}
    assert target_table([holds, holds | {"holds": None}])[2:] == ["| a | **missed** | 2 | 1 | x |"]


def test_plots_that_are_there_are_drawn_anew(tmp_path: Path) -> None:
    rows = [row("hyperflexis", 0.8), row("hyperflexis", 0.6, 2.0)]
    assert write_plots(rows, tmp_path) == []
    path = tmp_path / "attained-mix_poisson-h200.svg"
    path.touch()
    assert write_plots(rows, tmp_path) == [path]
    assert "--ink:" in path.read_text(encoding="utf-8") and "hyperflexis" in path.read_text(encoding="utf-8")
