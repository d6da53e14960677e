"""What became of single requests, in a sentence each: one that was refused, one downgraded, one that gave way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from hyperflexis_cli.figures import microseconds, milliseconds
from hyperflexis_cli.record import Record

TIGHT_SHARE = 0.25
"""A request is tight beside another one where its first token is promised within this share of the other's time."""


def examples(records: Sequence[Record]) -> list[str]:
    """Those that there are."""
    found = (refused_example(records), downgraded_example(records), yielding_example(records))
    return [example for example in found if example is not None]


def refused_example(records: Sequence[Record]) -> str | None:
    record = _typical([record for record in records if record.refused])
    if record is None or record.finished is None:
        return None
    finished = record.finished
    retry = f"try again after {microseconds(finished.retry_after_us)}" if finished.retry_after_us else "no retry hint"
    return f"refused, for example: {_name(record)} was told after {_waited(record)}: {finished.message}; {retry}"


def downgraded_example(records: Sequence[Record]) -> str | None:
    downgraded = [record for record in records if record.downgrade is not None]
    # One that was served shows what a downgrade is for; there may be none.
    record = _typical([record for record in downgraded if not record.refused] or downgraded)
    if record is None or record.downgrade is None:
        return None
    end = (
        "it was refused in the end" if record.refused else f"its first token came after {milliseconds(record.ttft_ms)}"
    )
    now = record.downgrade.slo
    allowed = f" (now allowed: {microseconds(now.ttft_us)})" if now is not None else ""
    return f"downgraded, for example: {_name(record)} was told: {record.downgrade.message}; {end}{allowed}"


def yielding_example(records: Sequence[Record]) -> str | None:
    """Of those that kept their promise, the one that most tighter requests overtook."""
    counts = {id(record): len(overtakers(record, records)) for record in records if record.attained}
    record = max((r for r in records if counts.get(id(r))), key=lambda r: counts[id(r)], default=None)
    if record is None or record.slo is None:
        return None
    return (
        f"gave way, for example: {_name(record)}: {counts[id(record)]} tighter requests that came later had their "
        f"first token before it; its own came after {milliseconds(record.ttft_ms)}, "
        f"promised were {microseconds(record.slo.ttft_us)}"
    )


def gave_way(records: Sequence[Record]) -> Mapping[str, float]:
    """By tier that has tighter ones beside it: how many of these, on average, came later than one of its requests and
    had their first token before it."""
    counts: dict[str, list[int]] = {}
    tightest_us = min((record.slo.ttft_us for record in records if record.slo is not None), default=0)
    for record in records:
        if record.slo is not None and tightest_us <= TIGHT_SHARE * record.slo.ttft_us:
            counts.setdefault(record.tier, []).append(len(overtakers(record, records)))
    return {tier: fmean(numbers) for tier, numbers in counts.items()}


def overtakers(loose: Record, records: Sequence[Record]) -> list[Record]:
    """Tight requests that were sent after a loose one and had their first token before it."""
    if loose.slo is None or loose.first_token_s is None:
        return []
    return [
        tight
        for tight in records
        if tight.slo is not None
        and tight.first_token_s is not None
        and tight.slo.ttft_us <= TIGHT_SHARE * loose.slo.ttft_us
        and tight.sent_s > loose.sent_s
        and tight.first_token_s < loose.first_token_s
    ]


def _typical(records: Sequence[Record]) -> Record | None:
    """The one in the middle of those with a prediction, by how late its first token would have come."""
    told = sorted((record for record in records if record.predicted_ttft_us), key=lambda r: r.predicted_ttft_us)
    if told:
        return told[len(told) // 2]
    return records[0] if records else None


def _name(record: Record) -> str:
    return f"{record.tier} request {record.request_id} ({record.planned.prompt_tokens:,} prompt tokens)"


def _waited(record: Record) -> str:
    return milliseconds(None if record.ended_s is None else (record.ended_s - record.sent_s) * 1e3)
