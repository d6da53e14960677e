"""A request's life in words: in order, with its numbers, and what then happened."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_cli.timeline import Moment, timeline, verdict_lines
from hyperflexis_cli.wording import SAID, worded
from hyperflexis_client import (
    Decision,
    Finished,
    FinishReason,
    Measured,
    Pause,
    RequestDetails,
    RequestSummary,
    Slo,
    Verdict,
)

CHAT = Slo("chat", 500_000, 50_000, 250_000, 1.0)
PATIENT = Slo("patient", 10_000_000, 100_000, 400_000, 0.1)
SUMMARY = RequestSummary("r", "m", "chat", "finished", 100, 8, 10_000_000, "router-0", "w1", "1.1")


def decision(
    kind: str, at_us: int, reason: str = "worker", worker: str = "w1", attempt: str = "1.1", **numbers: float
) -> Decision:
    return Decision(kind, reason, numbers, worker, 10_000_000 - at_us, attempt, at_us)


def finished(
    ttft_us: int, total_us: int = 600_000, reason: FinishReason = FinishReason.LENGTH, **changes: Any
) -> Finished:
    verdict = Verdict.ATTAINED if 0 < ttft_us <= 500_000 else Verdict.MISSED
    message = changes.pop("message", "")
    tokens = 8 if ttft_us else 0
    return Finished(reason, 100, tokens, verdict, ttft_us, 30_000, 42_000, total_us, message, "", 1, **changes)


def details(*decisions: Decision, **changes: Any) -> RequestDetails:
    given: dict[str, Any] = {"slo": CHAT, "promised": CHAT, "finished": None, **changes}
    return RequestDetails(SUMMARY, decisions=decisions, **given)


def told(of: RequestDetails) -> list[str]:
    return [moment.told for moment in timeline(of)]


def test_a_placement_is_held_against_its_prediction() -> None:
    numbers = {
        "requests": 3,
        "queued_prefill_us": 120_000,
        "ahead_prefill_us": 80_000,
        "own_prefill_us": 45_000,
        "prefill_share": 0.55,
    }
    moments = timeline(
        details(
            decision(
                "place",
                1_000,
                "earliest_first_token",
                candidates=2,
                predicted_ttft_us=300_000,
                slack_us=1,
                harm_us=9_300,
                turn_us=9,
                **numbers,
            ),
            decision("begin", 200_000),
            decision("first_token", 419_000),
            decision("finish", 603_000, output_tokens=8, cached_tokens=64, preemptions=1),
            finished=finished(420_000),
            measured=Measured(420_000, 590_000, ()),
        )
    )
    assert moments == [
        Moment(
            0,
            "received by router-0: 100 prompt tokens, promised as chat: a first token within 500 ms, "
            "then 50.0 ms a token",
        ),
        Moment(
            1_000,
            "placed on w1 as attempt 1.1: its first token would come soon there, its decodes be little in the way, of "
            "2 workers; there: 3 requests, 120 ms of prefill queued, 80.0 ms of it ahead, 45.0 ms of its own to come, "
            "55.0 % of the time for prefill, what its decodes do to others counts as 9.3 ms; first token predicted "
            "after 300 ms — it came after 420 ms, 120 ms later",
        ),
        Moment(200_000, "its first chunk has run on w1"),
        Moment(420_000, "first token to the client: 420 ms, promised 500 ms: 80.0 ms to spare"),
        # The scheduler's clock is no router's: 603 ms cannot be after the end.
        Moment(
            600_000,
            "finished after 8 tokens; 64 tokens of its prompt were in the prefix cache; it lost its KV blocks 1 time",
        ),
        Moment(600_000, "the client was told the end, length after 8 tokens"),
    ]


def test_a_second_try_says_why_the_first_came_to_nothing() -> None:
    lines = told(
        details(
            decision("place", 1_000, "round_robin", predicted_ttft_us=300_000),
            decision("gave_up", 52_000, "left_behind", predicted_ttft_us=801_000, late_us=301_000, waiting=12),
            decision("place", 60_000, "second_try", "w2", "1.2", predicted_ttft_us=400_000),
            decision("first_token", 390_000, worker="w2", attempt="1.2"),
            finished=finished(399_500),
        )
    )
    assert lines[1].endswith("first token predicted after 300 ms — nothing came of it")
    assert lines[2] == (
        "given up by w1: to be in time itself it would have made others late; first token predicted after 801 ms, "
        "301 ms too late, 12 waited there"
    )
    assert "a second try: there it could still be in time" in lines[3]
    assert lines[3].endswith("first token predicted after 400 ms — it came after 400 ms, as predicted")


def test_a_refusal_ends_with_the_hint() -> None:
    end = finished(0, 61_000, FinishReason.REFUSED, message="cannot be kept", retry_after_us=1_900_000)
    of = details(decision("refuse", 60_000, "slo", predicted_ttft_us=2_400_000), finished=end)
    assert told(of)[-2:] == [
        "refused: its promise cannot be kept",
        "the client was told the end, refused: cannot be kept; try again after 1,900 ms",
    ]
    assert verdict_lines(of)[:2] == ["missed: promised as chat", "  first token: none came, promised 500 ms"]


def test_the_verdict_is_over_the_first_promise() -> None:
    of = details(decision("downgrade", 60_000, "patient"), slo=PATIENT, finished=finished(641_000, 1_200_000))
    assert verdict_lines(of) == [
        "missed: promised as chat",
        "  first token: 641 ms, promised 500 ms: 141 ms too long",
        "  each further token: 30.0 ms, promised 50.0 ms: 20.0 ms to spare",
        "  longest pause: 42.0 ms, promised 250 ms: 208 ms to spare (not part of the verdict)",
        "  downgraded to patient on the way: never counted as attained",
    ]
    assert verdict_lines(details()) == []


def test_times_are_not_held_against_the_promise_that_it_fell_to() -> None:
    """A router that does not tell the first promise."""
    fell = decision("downgrade", 60_000, "patient")
    of = details(fell, slo=PATIENT, promised=None, finished=finished(641_000, 1_200_000))
    assert told(of)[0] == "received by router-0: 100 prompt tokens"
    assert verdict_lines(of) == [
        "missed",
        "  first token: 641 ms",
        "  each further token: 30.0 ms",
        "  longest pause: 42.0 ms (not part of the verdict)",
        "  downgraded to patient on the way: never counted as attained",
    ]
    assert verdict_lines(details(promised=None, finished=finished(420_000)))[0] == "attained: promised as chat"


def test_best_effort_says_which_promise_is_given_up() -> None:
    lines = told(
        details(
            decision("place", 1_000, "round_robin"),
            decision("gave_up", 52_000, "hopeless"),
            decision("best_effort", 52_000, "chat"),
            decision("place", 52_000, "best_effort", attempt="1.2"),
        )
    )
    assert lines[-2:] == [
        "its promise as chat is given up: its client was told",
        "placed on w1 as attempt 1.2: behind all that still have a promise",
    ]


def test_an_attempt_that_goes_on_after_another_was_lost() -> None:
    """The first one's first token came to the client; the worker was gone before it could tell the scheduler."""
    lines = told(
        details(
            decision("place", 1_000, "round_robin", predicted_ttft_us=90_000),
            decision("lost", 150_000, "engine_lost"),
            decision("place", 160_000, "round_robin", "w2", "1.2", committed_tokens=7, predicted_ttft_us=290_000),
            decision("resumed", 300_000, "worker", "w2", "1.2"),
            measured=Measured(100_000, 310_000, ()),
        )
    )
    assert lines[1].endswith("first token predicted after 90.0 ms — it came after 100 ms, 10.0 ms later")
    assert lines[4] == (
        "placed on w2 as attempt 1.2 to go on after 7 tokens: it was that worker's turn; "
        "next token predicted after 290 ms"
    )
    assert lines[5] == "goes on with the next token on w2"


def test_preemptions_and_broken_pauses_are_told_where_they_were() -> None:
    lines = told(
        details(
            decision("preempt", 420_000, "kv_blocks", recompute_tokens=104),
            finished=finished(200_000, 900_000),
            measured=Measured(200_000, 800_000, (Pause(300_000, 90_000, 3), Pause(400_000, 310_000, 5))),
        )
    )
    assert lines[2:4] == [
        "paused before token 5: 310 ms, promised 250 ms: 60.0 ms too long",
        "preempted on w1: its KV blocks went to other requests; 104 tokens to compute again",
    ]


def test_moved_work_says_why() -> None:
    lines = told(
        details(
            decision("hold", 1_000, "no_ready_worker", "", "", held=3),
            decision("place", 2_000, "least_requests"),
            decision("revoke", 90_000, "idle_worker"),
            decision("revoked", 91_000),
            decision("place", 91_000, "least_requests", "w2", "1.2"),
            decision("lost", 150_000, "engine_lost", "w2", "1.2"),
        )
    )
    assert lines[1] == "waits: no worker is ready, 2 others too"
    assert lines[2].endswith("— nothing came of it")
    assert lines[3:5] == ["asked back from w1: another worker has nothing to do", "given back by w1 before it began"]
    assert lines[-1] == "the attempt on w2 is lost: the worker's engine failed"


def test_an_older_schedulers_decisions_are_placed_by_their_age() -> None:
    old = Decision("place", "round_robin", {}, "w1", 9_900_000, "1.1")
    assert timeline(details(old))[1].after_us == 100_000


def test_what_has_no_words_is_said_as_it_is_spelled() -> None:
    assert worded(decision("migrate", 0, "kv_pressure", blocks=12)) == "migrate on w1: kv pressure (blocks 12)"
    place = worded(decision("place", 0, "power_of_two", tried=2))
    assert place == "placed on w1 as attempt 1.1: power of two; there: tried 2"


KINDS = st.sampled_from([*SAID, "something_new"])
NAMES = st.sampled_from(["predicted_ttft_us", "late_us", "held", "waiting", "requests", "candidates", "output_tokens"])
DECISIONS = st.builds(
    lambda kind, at, reason, worker, numbers, known: Decision(
        kind, reason, numbers, worker, 10_000_000 - at, "1.1", at if known else None
    ),
    KINDS,
    st.integers(-5_000, 9_000_000),
    st.sampled_from(["", "worker", "slo", "second_try", "[red]"]),
    st.sampled_from(["", "w1"]),
    st.dictionaries(NAMES, st.floats(0, 1e9)),
    st.booleans(),
)
ENDS = st.none() | st.builds(finished, st.integers(0, 600_000), st.integers(600_000, 9_000_000))


@given(st.lists(DECISIONS, max_size=32), ENDS, st.integers(0, 600_000))
def test_every_decision_is_told_once_in_order_of_time(
    decisions: list[Decision], end: Finished | None, first_us: int
) -> None:
    of = details(*decisions, finished=end, measured=Measured(first_us, first_us, ()))
    moments = timeline(of)
    times = [moment.after_us for moment in moments]
    assert times == sorted(times) and times[0] == 0
    came = first_us or (end.ttft_us if end is not None else 0)
    instead = sum(one.kind == "first_token" for one in decisions) if came else 0
    assert len(moments) == 1 + len(decisions) - instead + bool(came) + (end is not None)
    assert all(moment.told for moment in moments)
    if end is not None:
        assert moments[-1].told.startswith("the client was told the end")
    verdict_lines(of)


def test_what_was_read_from_another_worker_is_said() -> None:
    placed = decision("place", 0, "earliest_first_token", candidates=2, pulled_tokens=640, read_us=2_500)
    assert worded(placed).endswith("there: 640 tokens of it to be read from another worker in 2.5 ms")
    read = decision("finish", 0, "worker", pulled_tokens=640, pull_us=3_000)
    assert worded(read) == "finished; 640 tokens had been read from another worker in 3.0 ms"
    assert worded(decision("finish", 0, "worker", pull_us=3_000)).endswith(
        "waited 3.0 ms for another worker's cache, in vain"
    )


def test_a_tpot_that_no_step_can_keep_is_said() -> None:
    [_, line] = told(details(decision("place", 1_000, "round_robin", empty_step_us=6_200)))
    assert line.endswith("there: a step takes 6.2 ms with nothing in it: longer than its TPOT")
