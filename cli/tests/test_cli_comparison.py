"""Several policies side by side: their names, the table, single requests in words, the files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hyperflexis_cli.comparison import Comparison
from hyperflexis_cli.display import comparison_table
from hyperflexis_cli.examples import downgraded_example, examples, gave_way, overtakers, refused_example
from hyperflexis_cli.measured import Measured
from hyperflexis_cli.plan import Planned
from hyperflexis_cli.policy import SCHEDULER_POLICIES, WORKER_POLICIES, Policy, PolicyError
from hyperflexis_cli.record import Record
from hyperflexis_cli.stack_settings import BUILT_IN, built_in_document
from hyperflexis_cli.summary import summarise
from hyperflexis_client import Finished, FinishReason, Notice, NoticeKind, Slo, Verdict
from hyperflexis_scheduler.config import SchedulerSettings
from hyperflexis_worker.config import WorkerSettings

CHAT = Slo("chat", 500_000, 50_000, 250_000, 1.0)
SUMMARISE = Slo("summarise", 15_000_000, 100_000, 400_000, 1.0)
PATIENT = Slo("patient", 10_000_000, 100_000, 400_000, 0.1)


def record(slo: Slo, sent_s: float, first_s: float | None, **changes: Any) -> Record:
    done = Record(Planned(0, sent_s, 1_200, 2, slo.tier), f"{slo.tier}-{sent_s:g}", sent_s=sent_s, slo=slo)
    done.first_token_s, done.output_tokens = first_s, 2 if first_s is not None else 0
    done.last_token_s = done.ended_s = None if first_s is None else first_s + 0.02
    done.ended_s = done.ended_s or sent_s + 0.05
    reason = FinishReason.LENGTH if first_s is not None else FinishReason.REFUSED
    done.finished = Finished(reason, 1_200, done.output_tokens, Verdict.ATTAINED, 0, 0, 0, 0, "", "", 1)
    for name, value in changes.items():
        setattr(done, name, value)
    return done


def refused(sent_s: float, predicted_us: int = 1_200_000) -> Record:
    end = Finished(
        FinishReason.REFUSED, 1_200, 0, Verdict.MISSED, 0, 0, 0, 0, "tier 'chat' cannot be kept now", "", 1,
        retry_after_us=1_900_000, predicted_ttft_us=predicted_us,
    )  # fmt: skip
    return record(CHAT, sent_s, None, finished=end)


def test_a_policy_is_read_as_it_is_written() -> None:
    assert Policy.parse("hyperflexis") == Policy("hyperflexis", "hyperflexis")
    assert Policy.parse("hyperflexis+hyperflexis").name == "hyperflexis"
    assert Policy.parse(" round_robin+fcfs ") == Policy("round_robin", "fcfs")
    assert [p.name for p in Policy.parse_all("jsq+edf,hyperflexis")] == ["jsq+edf", "hyperflexis"]


@given(st.sampled_from(SCHEDULER_POLICIES), st.sampled_from(WORKER_POLICIES))
def test_every_name_is_its_policy_again(scheduler: str, worker: str) -> None:
    policy = Policy(scheduler, worker)
    assert Policy.parse(policy.name) == policy
    document = policy.applied_to({"worker": {"max_num_tokens": 128, "policy": "edf"}, "models": []})
    assert (document["scheduler"]["policy"], document["worker"]["policy"]) == (scheduler, worker)
    assert document["worker"]["max_num_tokens"] == 128


@pytest.mark.parametrize(
    "name", ["", "fcfs", "round_robin", "fcfs+round_robin", "round_robin+fcfs+edf", "hyperflexis+"]
)
def test_what_is_no_policy_is_told_what_there_is(name: str) -> None:
    with pytest.raises(PolicyError, match=r"scheduler: hyperflexis, round_robin.*worker: hyperflexis, admission, fcfs"):
        Policy.parse(name)


def test_a_policy_named_twice_is_refused() -> None:
    with pytest.raises(PolicyError, match="'hyperflexis' is named twice"):
        Policy.parse_all("hyperflexis,hyperflexis+hyperflexis")


def test_the_names_are_those_of_the_services() -> None:
    assert get_args(SchedulerSettings.model_fields["policy"].annotation) == SCHEDULER_POLICIES
    assert get_args(WorkerSettings.model_fields["policy"].annotation) == WORKER_POLICIES


def test_the_built_in_tiers_have_every_kind_of_violation() -> None:
    kinds = {tier.get("on_violation", "best_effort").partition(":")[0] for tier in BUILT_IN["tiers"]}
    assert kinds == {"refuse", "downgrade", "best_effort"}
    SchedulerSettings(tiers=built_in_document()["tiers"])


def test_a_refused_request_is_told_with_prediction_and_hint() -> None:
    told = refused_example([record(CHAT, 0.0, 0.1), refused(1.0, 600_000), refused(2.0), refused(3.0, 9_000_000)])
    assert told is not None
    assert "chat request chat-2 (1,200 prompt tokens) was told after 50.0 ms" in told
    assert "cannot be kept now; try again after 1,900 ms" in told
    assert refused_example([record(CHAT, 0.0, 0.1)]) is None


def test_a_downgraded_request_is_told_what_holds_now() -> None:
    notice = Notice(NoticeKind.DOWNGRADED, "served as tier patient", PATIENT, predicted_ttft_us=1_000_000)
    told = downgraded_example([record(CHAT, 0.0, 2.5, downgrade=notice)])
    assert told is not None
    assert "served as tier patient; its first token came after 2,500 ms (now allowed: 10.0 s)" in told
    both = downgraded_example([record(CHAT, 0.0, None, downgrade=notice), record(CHAT, 1.0, 3.5, downgrade=notice)])
    assert both is not None and "chat request chat-1 " in both
    gone = downgraded_example([record(CHAT, 0.0, None, downgrade=notice)])
    assert gone is not None and "it was refused in the end" in gone


def test_who_is_overtaken_by_whom() -> None:
    loose = record(SUMMARISE, 0.0, 5.0)
    before, after, late = record(CHAT, -1.0, 0.1), record(CHAT, 1.0, 1.2), record(CHAT, 4.9, 5.1)
    other = record(SUMMARISE, 1.0, 2.0)
    records = [before, loose, after, late, other]
    assert overtakers(loose, records) == [after]
    assert gave_way(records) == {"summarise": 0.5}
    assert any("1 tighter requests that came later" in example for example in examples(records))
    assert gave_way([before, after]) == {}


def compared() -> Comparison:
    ours = [record(CHAT, float(i), i + 0.1) for i in range(8)] + [refused(9.0), record(SUMMARISE, 0.0, 5.0)]
    theirs = [record(CHAT, float(i), i + 4.0) for i in range(9)] + [record(SUMMARISE, 0.0, 5.0)]
    runs = {"hyperflexis": ours, "round_robin+fcfs": theirs}
    return Comparison(
        {name: Measured(records, summarise(records, 10.0, policy=name)) for name, records in runs.items()}
    )


def test_the_table_has_the_policies_of_a_tier_side_by_side_and_fits_a_terminal() -> None:
    console = Console(width=100, file=io.StringIO(), record=True)
    console.print(comparison_table(compared().summary["policies"]))
    text = console.export_text()
    assert "…" not in text
    rows = [line.split() for line in text.splitlines() if "hyperflexis" in line or "fcfs" in line]
    assert [row[:3] for row in rows[:2]] == [["chat", "hyperflexis", "8/9"], ["round_robin+fcfs", "0/9", "0.0"]]
    assert [row[0] for row in rows[::2]] == ["chat", "summarise", "all"]


async def test_both_go_into_both_files(tmp_path: Path) -> None:
    comparison = compared()
    assert comparison.clean
    await comparison.write(tmp_path / "out" / "s.json", tmp_path / "out" / "r.html", {"Load": "150 %"}, "A <title>")
    summary = json.loads((tmp_path / "out" / "s.json").read_text())
    assert list(summary["policies"]) == ["hyperflexis", "round_robin+fcfs"]
    ours = summary["policies"]["hyperflexis"]
    assert (ours["requests"], ours["refused"], ours["lost_tokens"]) == (10, 1, 0)
    assert ours["tiers"]["chat"]["attained"] == 8
    page = (tmp_path / "out" / "r.html").read_text()
    assert page.count("<svg") == 8
    assert "attained under round_robin+fcfs" in page and "refused, for example" in page
    assert "A &lt;title&gt;" in page and "<script" not in page


def test_one_that_is_not_clean_makes_all_unclean() -> None:
    comparison = compared()
    comparison.measured["round_robin+fcfs"].summary["lost_tokens"] = 1
    assert not comparison.clean
