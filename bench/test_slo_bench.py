"""What is selected, and how a target is judged."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from slo import Results, find_bounds, find_capacities
from slo_bounds import fluid_verdicts
from slo_environments import PROFILES, TRACES, Environment
from slo_selection import NAMED, default_jobs, disaggregated_jobs, full_jobs, narrowed, quick_jobs
from slo_targets import verdicts

from hyperflexis_sim.policies import POLICIES

Row = dict[str, Any]


def row(policy: str, attainment: float, seed: int = 0, load: float = 2.0, **more: float) -> Row:
    latencies = {"ttft_p99_ms": 100.0, "e2e_p99_ms": 1_000.0, "gap_p99_ms": 50.0} | more
    latencies.setdefault("token_deadline_attainment", attainment)
    about = {"trace": "mix", "profile": "h200/m/tp1", "workers": 4, "tier": "all", "load": load, "seed": seed}
    return {**about, "policy": policy, "attainment": attainment, **latencies}


def verdict(rows: list[Row], words: str) -> Row:
    return next(found for found in verdicts(rows) if words in found["target"])


def test_round_robin_counts_only_where_it_fails() -> None:
    rows = [row("hyperflexis", 0.8), row("round_robin+fcfs2048", 0.1)]
    assert verdict(rows, "4.44 x")["holds"] is True
    assert verdict([row("hyperflexis", 0.4), rows[1]], "4.44 x")["holds"] is False
    assert verdict([rows[0], row("round_robin+fcfs2048", 0.5)], "4.44 x")["holds"] is None


def test_the_best_baseline_is_met_seed_by_seed() -> None:
    rows = [row("hyperflexis", 0.80 + seed / 100, seed) for seed in range(5)]
    tie = [row("jsq+qoserve", 0.804 + seed / 100, seed) for seed in range(5)]
    found = verdict(rows + tie, ">= best baseline -0.005")
    assert (found["holds"], found["points"], found["missed"], found["unsure"]) == (True, 1, 0, 0)
    better = [row("jsq+scorpio", 0.81, 0)]
    found = verdict(rows + tie + better, "best baseline -0.005")
    assert (found["holds"], found["missed"], found["unsure"]) == (False, 1, 1)
    assert "jsq+scorpio" in found["worst"]


def test_pauses_and_late_tokens_count_too() -> None:
    rows = [row("hyperflexis", 0.9, load=1.0, gap_p99_ms=60.0, token_deadline_attainment=0.8)]
    other = [row("jsq+qoserve", 0.85, load=1.0)]
    assert verdict(rows + other, "longest pause")["holds"] is False
    assert verdict(rows + other, "every token in time")["holds"] is False
    assert verdict([row("hyperflexis", 0.9, load=1.0)] + other, "longest pause")["holds"] is True
    assert verdict([row("hyperflexis", 0.9, load=1.0)] + other, "every token in time")["holds"] is True


def test_adaptive_roles_are_held_against_both_alternatives() -> None:
    rows = [row("hyperflexis", 0.80), row("hyperflexis@adaptive", 0.81), row("hyperflexis@2p2d", 0.83)]
    assert verdict(rows, "all in one")["holds"] is True
    found = verdict(rows, "best static split")
    assert found["holds"] is False and "hyperflexis@2p2d" in found["worst"]
    assert verdict(rows, "best baseline")["holds"] is None, "a split of ours is no baseline"
    assert verdict(rows[:1], "best static split")["holds"] is None


def test_the_disaggregated_set_has_every_split_on_every_trace() -> None:
    jobs = disaggregated_jobs()
    assert {job.environment.trace for job in jobs} == {"mix_poisson", "mix_gamma3", *TRACES}
    assert {job.environment.gpu for job in jobs} == {"h200", "a100"}
    wanted = {"hyperflexis", "hyperflexis@adaptive", "hyperflexis@2p2d", "jsq+fcfs2048@1p3d", "jsq+fcfs2048"}
    assert wanted <= {job.policy for job in jobs}
    assert narrowed(jobs, ["mix_poisson/a100"], ["hyperflexis@3p1d"], None)


def test_a_baseline_that_keeps_nothing_is_beaten() -> None:
    rows = [row("hyperflexis", 0.8), row("polyserve+fcfs512", 0.0)]
    assert verdict(rows, "1.15 x polyserve")["holds"] is True
    assert (
        verdict([row("hyperflexis", 0.8, load=1.25), row("polyserve+fcfs512", 0.8, load=1.25)], "1.15 x poly")["holds"]
        is None
    )


def test_latencies_are_compared_at_load_1() -> None:
    rows = [row("hyperflexis", 0.9, load=1.0), row("round_robin+fcfs2048", 0.5, load=1.0, e2e_p99_ms=1_400.0)]
    assert verdict(rows, "TTFT of served")["holds"] is False
    assert verdict(rows, "0.7 x round_robin")["holds"] is False
    assert verdict([row("hyperflexis", 0.9, load=1.0, e2e_p99_ms=900.0), rows[1]], "0.7 x round_robin")["holds"] is True


def test_every_selection_has_what_the_targets_name() -> None:
    for jobs in (default_jobs(), full_jobs()):
        mixes = [job for job in jobs if job.environment == Environment("mix_poisson", "h200", 4)]
        assert {job.policy for job in mixes if job.seed == 4} >= {"hyperflexis", *NAMED}
        assert {job.policy for job in mixes} == {
            "hyperflexis",
            *(name for name in POLICIES if "hyperflexis" not in name),
        }
        assert len(set(jobs)) == len(jobs)
    assert {job.seed for job in quick_jobs()} == {0}


def test_a_selection_can_be_narrowed() -> None:
    kept = narrowed(default_jobs(), ["mix_poisson/h200/4"], ["hyperflexis"], 2)
    assert {job.environment.name for job in kept} == {"mix_poisson/h200/4"}
    assert sorted({job.seed for job in kept}) == [0, 1] and len(kept) == 14
    with pytest.raises(ValueError, match="unknown environment 'mix'"):
        narrowed(default_jobs(), ["mix"], [], None)
    with pytest.raises(ValueError, match="unknown policy 'fifo'"):
        narrowed(default_jobs(), [], ["fifo"], None)


def test_the_fluid_bound_is_judged_by_the_mean_over_seeds() -> None:
    about = {"trace": "mix_poisson", "profile": "h200/llama-3.1-8b/tp1", "workers": 4, "load": 2.0}
    rows = [about | {"policy": "hyperflexis", "tier": "all", "seed": n, "attainment": 0.8 + 0.02 * n} for n in range(2)]
    [mix, azure] = fluid_verdicts(rows, [about | {"seed": 0, "fluid": 0.84, "clairvoyant": 0.9}])
    assert (mix["holds"], mix["points"], mix["worst"]) == (False, 1, "mix_poisson/h200/4 at 2: 0.964 of 0.840")
    assert azure["holds"] is None
    [mix, _] = fluid_verdicts(rows, [about | {"seed": 0, "fluid": 0.82, "clairvoyant": 0.9}])
    assert mix["holds"] is True


def test_what_is_kept_is_not_looked_for_again(tmp_path: Path) -> None:
    jobs = narrowed(default_jobs(), ["mix_poisson/h200/4"], ["hyperflexis"], 1)
    place = {"trace": "mix_poisson", "profile": PROFILES["h200"], "workers": 4}
    kept = {"capacities": [place | {"rate_rps": 90.0}], "bounds": [place | {"load": job.load} for job in jobs]}
    results = Results(tmp_path / "slo.json", {})
    results.know(kept, jobs)
    with ProcessPoolExecutor(1) as pool:
        find_capacities(pool, jobs, tmp_path, results)
        find_bounds(pool, jobs, tmp_path, results)
    assert [found["rate_rps"] for found in results.capacities.values()] == [90.0]
    assert results.bounds == kept["bounds"]
