"""One request from its arrival to its end, in order of time: each decision, its numbers, and what then happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperflexis_cli.figures import microseconds
from hyperflexis_cli.wording import worded
from hyperflexis_client import Decision, RequestDetails, Slo, Verdict

ENDINGS = ("gave_up", "revoked", "lost", "finish", "refuse", "cancel", "place", "adopt")
"""Kinds after which an earlier placement is over."""


NOT_TOLD = Slo(tier="", ttft_us=0, tpot_us=0, max_gap_us=0, weight=0.0)


@dataclass(frozen=True, slots=True)
class Moment:
    after_us: int
    """Since the full request was received."""
    told: str


def timeline(details: RequestDetails) -> list[Moment]:
    """Oldest first; what came at the same time in the order in which it was decided."""
    decisions = sorted(details.decisions, key=lambda decision: _after_us(decision, details))
    slo, measured, first_us = promised(details), details.measured, _first_token_us(details)
    moments = [Moment(0, _received(details))]
    for at, decision in enumerate(decisions):
        if decision.kind == "first_token" and first_us:
            continue  # the client's, measured by the router, is the one that counts
        told = worded(decision)
        if decision.kind in ("place", "adopt"):
            told += _what_came(decision, decisions[at + 1 :], details)
        moments.append(Moment(_after_us(decision, details), told))
    if first_us:
        moments.append(Moment(first_us, f"first token to the client: {_against(first_us, slo.ttft_us)}"))
    for pause in measured.pauses if measured is not None else ():
        if pause.length_us > slo.max_gap_us:
            told = f"paused before token {pause.next_index}: {_against(pause.length_us, slo.max_gap_us)}"
            moments.append(Moment(pause.began_us, told))
    if details.finished is not None:
        moments.append(Moment(details.finished.total_us, _ended(details)))
    return sorted(moments, key=lambda moment: moment.after_us)


def promised(details: RequestDetails) -> Slo:
    """What the verdict is over. A router too old to tell knows only under which promise it runs now: that was the first
    one unless it was downgraded."""
    if details.promised is not None:
        return details.promised
    return NOT_TOLD if any(decision.kind == "downgrade" for decision in details.decisions) else details.slo


def verdict_lines(details: RequestDetails) -> list[str]:
    """The end against the promise; empty while it runs."""
    finished, slo = details.finished, promised(details)
    if finished is None:
        return []
    lines = [f"{finished.verdict}: promised as {slo.tier}" if slo.tier else str(finished.verdict)]
    if finished.ttft_us:
        lines.append(f"  first token: {_against(finished.ttft_us, slo.ttft_us)}")
    elif finished.verdict is Verdict.MISSED:
        lines.append(f"  first token: none came{_promise(slo.ttft_us)}")
    if finished.tpot_us:
        lines.append(f"  each further token: {_against(finished.tpot_us, slo.tpot_us)}")
    if finished.max_gap_us:
        lines.append(f"  longest pause: {_against(finished.max_gap_us, slo.max_gap_us)} (not part of the verdict)")
    if details.slo.tier != slo.tier:
        lines.append(f"  downgraded to {details.slo.tier} on the way: never counted as attained")
    return lines


def _received(details: RequestDetails) -> str:
    slo, summary = promised(details), details.summary
    said = f"received by {summary.router_id or 'a router'}: {summary.prompt_tokens:,} prompt tokens"
    if not slo.tier:
        return said
    within = f"a first token within {microseconds(slo.ttft_us)}, then {microseconds(slo.tpot_us)} a token"
    return f"{said}, promised as {slo.tier}: {within}"


def _ended(details: RequestDetails) -> str:
    finished = details.finished
    assert finished is not None
    why = f": {finished.message}" if finished.message else ""
    retry = f"; try again after {microseconds(finished.retry_after_us)}" if finished.retry_after_us else ""
    tokens = f" after {finished.output_tokens:,} tokens" if finished.output_tokens else ""
    return f"the client was told the end, {finished.reason.replace('_', ' ')}{tokens}{why}{retry}"


def _what_came(decision: Decision, later: Sequence[Decision], details: RequestDetails) -> str:
    """Of a placement: the first token it predicted, or that it came to nothing, which the next moments explain."""
    first_us = _first_token_us(details)
    if first_us and first_us < _after_us(decision, details):
        return ""
    for following in later:
        same = following.attempt == decision.attempt
        if following.kind == "first_token" and same:
            break
        if following.kind in ENDINGS and not (following.kind == "finish" and same):
            if first_us and first_us < _after_us(following, details):
                break  # the worker was lost before it could tell
            return " — nothing came of it"
    if not first_us:
        return ""
    predicted_us = decision.numbers.get("predicted_ttft_us")
    came = f" — it came after {microseconds(first_us)}"
    return f"{came}, {_off(first_us - predicted_us)}" if predicted_us else came


def _first_token_us(details: RequestDetails) -> int:
    """As the client had it; 0 = not yet."""
    if details.measured is not None and details.measured.first_token_us:
        return details.measured.first_token_us
    return details.finished.ttft_us if details.finished is not None else 0


def _after_us(decision: Decision, details: RequestDetails) -> int:
    after_us = decision.after_us if decision.after_us is not None else details.summary.age_us - decision.age_us
    if details.finished is not None:
        # Two processes' clocks: nothing is decided after its client was told the end.
        after_us = min(after_us, details.finished.total_us)
    return max(after_us, 0)


def _against(took_us: float, allowed_us: float) -> str:
    said = f"{microseconds(took_us)}{_promise(allowed_us)}"
    off_us = took_us - allowed_us
    return f"{said}: {microseconds(abs(off_us))} {'too long' if off_us > 0 else 'to spare'}" if allowed_us else said


def _promise(allowed_us: float) -> str:
    return f", promised {microseconds(allowed_us)}" if allowed_us else ""


def _off(late_us: float) -> str:
    if abs(late_us) < 1_000:
        return "as predicted"
    return f"{microseconds(abs(late_us))} {'later' if late_us > 0 else 'sooner'}"
