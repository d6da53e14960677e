"""What became of each decision about a request: the prediction it was made on, beside what then happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hyperflexis_cli.figures import microseconds
from hyperflexis_client import Decision, RequestDetails

WORDS = {
    "begin": "its first chunk ran",
    "first_token": "made its first token",
    "resumed": "went on where the last attempt had ended",
    "hold": "held: no place to go",
    "gave_up": "given up by the worker",
    "revoke": "called back before it began",
    "revoked": "called back before it began",
    "lost": "the attempt was lost",
    "refuse": "refused",
    "downgrade": "downgraded",
    "finish": "finished",
    "adopt": "found running by a new leader",
}
STEPS = ("begin", "first_token", "resumed")
"""What happens to an attempt without anybody deciding it."""


@dataclass(frozen=True, slots=True)
class Explained:
    decision: Decision
    after_us: int
    """Since the first decision."""
    then: str
    """Empty where nothing followed yet."""


def explained(details: RequestDetails) -> list[Explained]:
    """Oldest first."""
    decisions = sorted(details.decisions, key=lambda decision: -decision.age_us)
    oldest_us = decisions[0].age_us if decisions else 0
    return [
        Explained(decision, oldest_us - decision.age_us, _then(decisions, at, details))
        for at, decision in enumerate(decisions)
    ]


def _then(decisions: Sequence[Decision], at: int, details: RequestDetails) -> str:
    decision = decisions[at]
    if decision.kind in STEPS or decision.kind == "finish":
        return ""
    following = next((later for later in decisions[at + 1 :] if later.kind != "begin"), None)
    if decision.kind in ("place", "adopt"):
        return _placed(decision, following, details)
    if decision.kind == "refuse":
        retry_us = details.finished.retry_after_us if details.finished is not None else 0
        return f"its client was told to try again after {microseconds(retry_us)}" if retry_us else "its client was told"
    if following is None:
        return ""
    return f"{_said(following)} {_later(decision, following)}"


def _placed(decision: Decision, following: Decision | None, details: RequestDetails) -> str:
    predicted_us = decision.numbers.get("predicted_ttft_us", 0.0)
    finished = details.finished
    came_here = following is None or following.kind in ("first_token", "finish")
    if came_here and finished is not None and finished.ttft_us:
        came = f"first token after {microseconds(finished.ttft_us)}"
        if not predicted_us:
            return came
        return f"{came}, {microseconds(predicted_us)} predicted ({_off(finished.ttft_us - predicted_us)})"
    return f"{_said(following)} {_later(decision, following)}" if following is not None else ""


def _said(decision: Decision) -> str:
    if decision.kind == "place":
        where = f" on {decision.worker_id}" if decision.worker_id else ""
        return f"placed{where}"
    words = WORDS.get(decision.kind, decision.kind.replace("_", " "))
    if decision.kind == "downgrade":
        return f"{words} to {decision.reason}"
    told = decision.reason not in ("worker", "")
    return f"{words} ({decision.reason.replace('_', ' ')})" if told else words


def _later(decision: Decision, following: Decision) -> str:
    between_us = decision.age_us - following.age_us
    return f"{microseconds(between_us)} later" if between_us >= 1_000 else "at once"


def _off(late_us: float) -> str:
    if abs(late_us) < 1_000:
        return "as predicted"
    return f"{microseconds(abs(late_us))} {'later' if late_us > 0 else 'sooner'}"


def verdict_line(details: RequestDetails) -> str | None:
    """Kept or not, and by how much; None while it runs. The verdict is over the first promise: times of one that was
    downgraded are not held against the promise that it fell to."""
    finished, slo = details.finished, details.slo
    if finished is None:
        return None
    downgraded = any(decision.kind == "downgrade" for decision in details.decisions)
    parts = []
    times = (("TTFT", finished.ttft_us, slo.ttft_us), ("TPOT", finished.tpot_us, slo.tpot_us))
    for name, took_us, promised_us in times:
        if took_us:
            of = "" if downgraded else f" of {microseconds(promised_us)}"
            parts.append(f"{name} {microseconds(took_us)}{of}")
    if finished.max_gap_us:
        parts.append(f"longest pause {microseconds(finished.max_gap_us)}")
    parts.append(f"{finished.attempts} attempts" if finished.attempts != 1 else "1 attempt")
    line = f"{finished.reason}, {finished.verdict}: {', '.join(parts)}"
    return line + ("; downgraded on the way, the verdict is over its first promise" if downgraded else "")
