"""Several replays of the same requests as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from hyperflexis_cli.display import notes
from hyperflexis_cli.figures import count, milliseconds, share
from hyperflexis_cli.record import Record
from hyperflexis_cli.report import figure, page, plots_of, table_of
from hyperflexis_cli.summary import side_by_side

Run = tuple[str, Sequence[Record], Mapping[str, Any]]
"""Policy, records, summary."""
COLUMNS = (
    "tier", "policy", "requests", "attainment", "TTFT p50", "p99", "objective", "TPOT p50", "p99", "objective",
    "refused", "downgraded",
)  # fmt: skip


def render_comparison(runs: Sequence[Run], about: Mapping[str, str], sentences: Sequence[str], title: str) -> str:
    """The page. `about` = how it was measured, `sentences` = what became of single requests."""
    summaries = {policy: summary for policy, _, summary in runs}
    figures = []
    for policy, summary in summaries.items():
        unclean = summary["lost_tokens"] + summary["repeated_tokens"] + summary["failed"]
        figures.append(figure(share(summary["attainment"]), f"attained under {policy}", "bad" if unclean else ""))
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    plots = f"<section><h2>What became of single requests</h2><ul>{told}</ul></section>\n" if told else ""
    plots += "".join(plots_of(records, f"{policy}: ") for policy, records, _ in runs)
    requests = max((summary["requests"] for summary in summaries.values()), default=0)
    return page(
        title,
        f"the same {count(requests)} requests under {', '.join(summaries)}, each on a fresh stack",
        figures,
        ("Per tier", table_of(COLUMNS, _rows(summaries))),
        plots,
        about,
        [f"{policy}: {note}" for policy, summary in summaries.items() for note in notes(dict(summary))],
    )


def _rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            tier,
            policy,
            count(sums["requests"]),
            share(sums["attainment"]),
            milliseconds(sums["ttft_p50_ms"]),
            milliseconds(sums["ttft_p99_ms"]),
            milliseconds(sums.get("slo_ttft_ms")),
            milliseconds(sums["tpot_p50_ms"]),
            milliseconds(sums["tpot_p99_ms"]),
            milliseconds(sums.get("slo_tpot_ms")),
            count(sums["refused"]),
            count(sums["downgraded"]),
        ]
        for tier, policy, sums in side_by_side(summaries)
    ]
