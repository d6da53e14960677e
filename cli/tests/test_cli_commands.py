"""The commands as a person types them, against a scripted service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner, Result

from hyperflexis_cli.app import app
from hyperflexis_client.testing import Behaviour, FakeService, Fault, fake_tokens

TRACE = "arrival_s,prompt_tokens,output_tokens,tier\n" + "".join(
    f"{i / 100},{5 + i},{3 + i % 4},chat\n" for i in range(20)
)


@pytest.fixture
def service() -> Iterator[FakeService]:
    with FakeService(Behaviour(ttft_s=0.002, tpot_s=0.001, context_length=20)) as service:
        yield service


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE, encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "demo",
        "generate",
        "replay",
        "requests",
        "explain",
        "models",
        "cluster",
        "top",
        "migrate",
        "role",
        "drain",
        "profile",
    ],
)
def test_every_command_has_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.stdout


def test_no_command_shows_what_there_is() -> None:
    assert "replay" in run().stdout
    assert run("--version").stdout.startswith("hyperflexis 0.")


def test_generate_streams_text_and_ends_with_its_times(service: FakeService) -> None:
    result = run("generate", "hello", "-t", service.target, "--max-tokens", 4)
    assert result.exit_code == 0
    text = "".join(f"<{token}>" for token in fake_tokens(tuple(b"hello"), 4))
    assert result.stdout.startswith(text + "\n")
    assert "4 tokens (length), TTFT" in result.stdout and "attained" in result.stdout


def test_generate_as_json_and_token_ids(service: FakeService) -> None:
    result = run("generate", "1, 2 3", "-t", service.target, "--max-tokens", 3, "--token-ids", "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["accepted", "delta", "delta", "delta", "finished"]
    assert tuple(event["token_ids"][0] for event in events[1:4]) == fake_tokens([1, 2, 3], 3)
    plain = run("generate", "1 2 3", "-t", service.target, "--max-tokens", 3, "--token-ids")
    assert plain.stdout.split("\n")[0].split() == [str(token) for token in fake_tokens([1, 2, 3], 3)]


def test_generate_says_what_is_wrong(service: FakeService) -> None:
    result = run("generate", "hi", "-t", service.target, "--model", "gpt")
    assert (result.exit_code, result.stderr.strip()) == (2, "error: no model 'gpt'; there are fake")
    assert run("generate", "one", "-t", service.target, "--token-ids").exit_code == 2
    assert run("generate", "hi", "-t", ",").exit_code == 2
    service.behaviour.refuse_every = 1
    refused = run("generate", "hi", "-t", service.target)
    assert refused.exit_code == 1 and "refused" in refused.stdout


def test_nobody_there_is_one_line() -> None:
    with FakeService() as gone:
        pass
    result = run("models", "-t", gone.target)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "no router answers" in result.stderr and "hyperflexis up" in result.stderr


def test_a_replay_writes_summary_and_report(service: FakeService, trace: Path, tmp_path: Path) -> None:
    summary_path, report = tmp_path / "out" / "s.json", tmp_path / "out" / "r.html"
    result = run("replay", "--trace", trace, "-t", service.target, "--json", summary_path, "--html", report)
    assert result.exit_code == 0, result.output
    summary = json.loads(summary_path.read_text())
    assert (summary["requests"], summary["finished"], summary["failed"]) == (20, 20, 0)
    assert (summary["lost_tokens"], summary["repeated_tokens"]) == (0, 0)
    assert summary["clipped"] == 8
    assert set(summary["tiers"]) == {"chat"}
    assert "Clipped to the model's context: 8 of 20" in result.stdout
    assert "20/20" in result.stdout
    assert report.read_text().startswith("<!doctype html>")


def test_a_replay_can_be_shaped(service: FakeService, trace: Path, tmp_path: Path) -> None:
    options = [
        "--speed",
        2,
        "--duration",
        0.05,
        "--scale-lengths",
        0.5,
        "--tier-mix",
        "code=1",
        "--json",
        tmp_path / "s",
    ]
    result = run("replay", "--trace", trace, "-t", service.target, *options)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "s").read_text())
    assert (summary["requests"], summary["clipped"], summary["speed"]) == (10, 0, 2.0)
    assert set(summary["tiers"]) == {"code"}


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(1, grpc.StatusCode.INTERNAL, "a bug"), "Failed: InternalError: a bug"),
        (Fault.shifted(after=1, by=-1), "0 tokens lost, 1 repeated"),
        (Fault.shifted(after=1, by=2), "2 tokens lost, 0 repeated"),
    ],
)
def test_a_replay_that_fails_ends_with_status_1(service: FakeService, trace: Path, fault: Fault, says: str) -> None:
    service.behaviour.faults.append(fault)
    result = run("replay", "--trace", trace, "-t", service.target)
    assert result.exit_code == 1
    assert says in result.stdout
    assert "1 failed" in result.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--tier-mix", "gold=1"], "no tier 'gold'; the router has chat, code"),
        (["--tier-mix", "chat"], "tier mix must read like"),
        (["--speed", "0"], "must be above 0"),
    ],
)
def test_replay_options_are_checked(service: FakeService, trace: Path, options: list[str], says: str) -> None:
    result = run("replay", "--trace", trace, "-t", service.target, *options)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_malformed_trace_names_its_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("arrival_s,prompt_tokens,output_tokens\n0,5,5\n1,x,5\n")
    result = run("replay", "--trace", bad)
    assert result.exit_code == 2
    assert "bad.csv:3: prompt_tokens must be a whole number of at least 1, got 'x'" in result.stderr.replace("\n", "")


def test_looking_inside(service: FakeService) -> None:
    run("generate", "hello", "-t", service.target, "--max-tokens", 2)
    assert "fake-00000000" in run("requests", "-t", service.target).stdout
    explained = run("explain", "fake-00000000", "-t", service.target).stdout
    assert "least prefill" in explained and "queued_tokens 120" in explained
    assert "first token predicted after 35.0 ms" in explained
    listed = run("models", "-t", service.target).stdout
    assert "fake" in listed and "chat (default)" in listed
    unknown = run("explain", "nobody", "-t", service.target)
    assert (unknown.exit_code, unknown.stderr.strip()) == (1, "error: no request nobody")


def test_no_requests_is_said(service: FakeService) -> None:
    assert run("requests", "-t", service.target).stdout.strip() == "no request of yours runs or waits"


def test_a_cluster_without_a_leader_is_said() -> None:
    with FakeService() as gone:
        pass
    result = run("cluster", "--scheduler", gone.target)
    assert result.exit_code == 1 and "no leader" in result.stderr


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("models: []\n", "models: the stack needs at least one model"),
        ("rooter: {}\n", "unknown key 'rooter'"),
        ("stack: {routers: 0}\nmodels: [{name: a}]\n", "stack.routers"),
        ("stack: {ruters: 1}\nmodels: [{name: a}]\n", "known keys: routers"),
    ],
)
def test_a_bad_configuration_is_a_usage_error(tmp_path: Path, yaml: str, says: str) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text(yaml)
    result = run("up", "--config", path)
    assert result.exit_code == 2
    assert says in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--policy", "fcfs"], "--policy: no policy 'fcfs': write hyperflexis, or a scheduler's and a worker's"),
        (["--load", "0"], "--load must be above 0"),
        (["--duration", "-1"], "--duration must be above 0"),
    ],
)
def test_demo_options_are_checked(options: list[str], says: str) -> None:
    result = run("demo", *options)
    assert result.exit_code == 2
    assert says in result.stderr
