from __future__ import annotations

from hyperflexis_cli.explanation import explained, verdict_line
from hyperflexis_client import Decision, Finished, FinishReason, RequestDetails, RequestSummary, Slo, Verdict

CHAT = Slo("chat", 500_000, 50_000, 250_000, 1.0)


def decision(kind: str, at_us: int, reason: str = "worker", worker: str = "w1", **numbers: float) -> Decision:
    return Decision(kind, reason, numbers, worker, 10_000_000 - at_us, "1.1")


def details(*decisions: Decision, finished: Finished | None = None) -> RequestDetails:
    summary = RequestSummary("r", "m", "chat", "finished", 100, 8, 10_000_000, "w1", "1.1", "router")
    return RequestDetails(summary, CHAT, decisions, finished)


def finished(ttft_us: int, verdict: Verdict = Verdict.ATTAINED, **changes: int) -> Finished:
    return Finished(FinishReason.LENGTH, 100, 8, verdict, ttft_us, 30_000, 42_000, 600_000, "", "", 1, **changes)


def test_a_placement_is_held_against_its_prediction() -> None:
    rows = explained(
        details(
            decision("place", 0, "earliest_first_token", predicted_ttft_us=300_000),
            decision("begin", 20_000),
            decision("first_token", 420_000),
            decision("finish", 900_000),
            finished=finished(420_000),
        )
    )
    assert [row.decision.kind for row in rows] == ["place", "begin", "first_token", "finish"]
    assert rows[0].then == "first token after 420 ms, 300 ms predicted (120 ms later)"
    assert [row.then for row in rows[1:]] == ["", "", ""]
    assert rows[2].after_us == 420_000


def test_a_second_try_tells_why_the_first_one_ended() -> None:
    rows = explained(
        details(
            decision("place", 0, "earliest_first_token", predicted_ttft_us=300_000),
            decision("gave_up", 52_000, "left_behind"),
            decision("place", 52_100, "second_try", "w2", predicted_ttft_us=400_000),
            decision("first_token", 390_000, worker="w2"),
            finished=finished(399_500),
        )
    )
    assert rows[0].then == "given up by the worker (left behind) 52.0 ms later"
    assert rows[1].then == "placed on w2 at once"
    assert rows[2].then == "first token after 400 ms, 400 ms predicted (as predicted)"


def test_downgraded_and_refused_say_what_came_of_it() -> None:
    refusal = Finished(
        FinishReason.REFUSED, 100, 0, Verdict.MISSED, 0, 0, 0, 0, "cannot be kept", "", 2, retry_after_us=1_900_000
    )  # fmt: skip
    rows = explained(
        details(
            decision("place", 0, "earliest_first_token", predicted_ttft_us=300_000),
            decision("gave_up", 60_000, "hopeless"),
            decision("downgrade", 60_000, "patient"),
            decision("place", 60_000, "downgraded"),
            decision("gave_up", 900_000, "hopeless"),
            decision("refuse", 900_000, "slo"),
            finished=refusal,
        )
    )
    assert rows[1].then == "downgraded to patient at once"
    assert rows[3].then == "given up by the worker (hopeless) 840 ms later"
    assert rows[5].then == "its client was told to try again after 1,900 ms"
    assert verdict_line(details(finished=refusal)) == "refused, missed: 2 attempts"


def test_what_still_runs_has_no_verdict() -> None:
    running = details(decision("hold", 0, "no_ready_worker"), decision("place", 1_200_000, "earliest_first_token"))
    assert explained(running)[0].then == "placed on w1 1,200 ms later"
    assert explained(running)[1].then == ""
    assert verdict_line(running) is None
    assert explained(details()) == []
    assert verdict_line(details(finished=finished(420_000))) == (
        "length, attained: TTFT 420 ms of 500 ms, TPOT 30.0 ms of 50.0 ms, longest pause 42.0 ms, 1 attempt"
    )


def test_a_downgraded_requests_times_are_not_held_against_what_it_fell_to() -> None:
    fell = details(decision("downgrade", 60_000, "patient"), finished=finished(641_000, Verdict.MISSED))
    assert verdict_line(fell) == (
        "length, missed: TTFT 641 ms, TPOT 30.0 ms, longest pause 42.0 ms, 1 attempt; "
        "downgraded on the way, the verdict is over its first promise"
    )
