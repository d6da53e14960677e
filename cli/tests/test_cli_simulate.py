"""`hyperflexis simulate` from a trace to rows, and what it says of input that it cannot use."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from hyperflexis_cli.app import app
from hyperflexis_sim.experiment import Experiment

TIERS = """tiers:
  - {name: fast, ttft_ms: 300, tpot_ms: 30}
  - {name: slow, ttft_ms: 9000, tpot_ms: 150}
"""


@pytest.fixture
def trace(tmp_path):
    path = tmp_path / "some.csv"
    rows = [f"{at * 0.2:.1f},{100 + 37 * at % 900},{5 + at % 40}" for at in range(40)]
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    return path


def simulate(*arguments):
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)])


def test_rows_table_and_page(trace, tmp_path):
    tiers, rows_path = tmp_path / "tiers.yaml", tmp_path / "deep" / "rows.json"
    tiers.write_text(TIERS)
    policies = ["hyperflexis", "round_robin+fcfs2048"]
    arguments = ["--tiers", tiers, "--workers", 2, "--policy", ",".join(policies), "--load", "1,20", "--seed", 7]
    result = simulate("--trace", trace, "--json", rows_path, "--plot", *arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(rows_path.read_text())["rows"]
    assert len(rows) == 2 * 2 * 3
    assert {(row["policy"], row["load"]) for row in rows} == {(name, load) for name in policies for load in (1.0, 20.0)}
    assert {row["tier"] for row in rows} == {"fast", "slow", "all"}
    assert {(row["trace"], row["workers"], row["seed"]) for row in rows} == {("some", 2, 7)}
    assert "x real time" in result.output and "round_robin+fcfs2048" in result.output
    page = rows_path.with_suffix(".html").read_text()
    assert page.count("<svg") == 2 and "tiers of hyperflexis" in page


def test_a_seed_gives_one_file(trace, tmp_path):
    texts = []
    for name in ("one.json", "other.json"):
        assert simulate("--trace", trace, "--json", tmp_path / name).exit_code == 0
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]


def test_duration_counts_seconds_as_simulated(trace, tmp_path):
    path = tmp_path / "rows.json"
    assert simulate("--trace", trace, "--json", path, "--duration", 2, "--load", 2).exit_code == 0
    assert json.loads(path.read_text())["rows"][-1]["requests"] == 20


def test_policies_are_listed_without_anything_else():
    result = simulate("--policy", "list")
    assert result.exit_code == 0
    assert "hyperflexis" in result.output and "jsq+qoserve_literal" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "fifo"], "unknown policy 'fifo'; known: hyperflexis"),
        (["--policy", ","], "--policy names none"),
        (["--load", "1,x"], "--load takes factors above 0"),
        (["--load", "0"], "--load takes factors above 0"),
        (["--duration", "-1"], "--duration takes seconds above 0"),
        (["--duration", "nan"], "--duration takes seconds above 0"),
        (["--duration", "0.0001", "--load", "0.001"], "a longer --duration has more"),
        (["--policy", "hyperflexis@9p9d"], "18 roles for 4 workers"),
        (["--policy", "hyperflexis:least_chunk=-5"], "rule least_chunk cannot be -5"),
        (["--profile", "h200/llama-3.1-8b/tp1+a100/llama-3.1-8b/tp1", "--workers", "1"], "2 profiles for 1 workers"),
        (["--profile", "h200/llama-3.1-8b/tp1+h200/qwen2.5-7b/tp1"], "serve one model"),
        (["--json", "/tmp/rows.html", "--plot"], "call it .json"),
        (["--profile", "abacus/llama/tp1"], "abacus"),
        (["--tiers", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
        (["--trace", "/nowhere.csv"], "cannot read /nowhere.csv"),
        (["--workers", "0"], "--workers"),
        (["--json", "/proc/nowhere/rows.json"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_status_2(trace, tmp_path, arguments, message):
    result = simulate("--trace", trace, "--json", tmp_path / "rows.json", *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize("rows", [["0,5,5"], ["1,5,5", "1,6,6"]])
def test_a_trace_without_a_rate_is_refused(tmp_path, rows):
    path = tmp_path / "one.csv"
    path.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]) + "\n")
    result = simulate("--trace", path, "--json", tmp_path / "rows.json")
    assert result.exit_code == 2
    assert "requests that arrive at different times" in result.stderr


def test_what_was_done_when_ctrl_c_comes_is_kept(trace, tmp_path, monkeypatch):
    run, path = Experiment.run, tmp_path / "rows.json"

    def interrupted(experiment: Experiment, tick: Any) -> Any:
        if experiment.policy == "round_robin+fcfs2048":
            raise KeyboardInterrupt
        return run(experiment, tick)

    monkeypatch.setattr(Experiment, "run", interrupted)
    result = simulate("--trace", trace, "--json", path, "--policy", "hyperflexis,round_robin+fcfs2048")
    assert result.exit_code == 130
    assert {row["policy"] for row in json.loads(path.read_text())["rows"]} == {"hyperflexis"}
    assert "written" in result.output


def test_results_say_what_was_promised(trace, tmp_path):
    path = tmp_path / "rows.json"
    assert simulate("--trace", trace, "--json", path, "--kv-tokens", "50000", "--duration", "5").exit_code == 0
    about = json.loads(path.read_text())["about"]
    assert about["Tier code"] == "first token 500 ms, each further one 30 ms; else refuse; share 1"
    assert "50,000 tokens of KV" in about["Workers"] and "within 5 s" in about["Trace"]


def test_older_results_stay_until_there_are_new_ones(trace, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("older")
    assert simulate("--trace", trace, "--json", path, "--policy", "hyperflexis@9p9d").exit_code == 2
    assert path.read_text() == "older"
