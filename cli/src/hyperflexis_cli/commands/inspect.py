"""`hyperflexis requests`, `explain`, `models`: what runs, where, and why."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from hyperflexis_cli.console import (
    DEFAULT_TARGET,
    PATIENCE,
    ApiKey,
    Targets,
    friendly,
    out,
    served_models,
    targets_of,
)
from hyperflexis_cli.figures import count, microseconds
from hyperflexis_cli.timeline import timeline, verdict_lines
from hyperflexis_client import AsyncClient, RequestDetails


@friendly
async def requests(
    target: Targets = DEFAULT_TARGET,
    api_key: ApiKey = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most this many per router.")] = 20,
) -> None:
    """Lists your requests that run or wait, the newest first; `explain` knows ended ones too."""
    table = _table("request", "tier", "state", "prompt", "output", "age", "worker", "attempt", "router")
    for address in targets_of(target):
        async with AsyncClient(address, api_key, retry=PATIENCE) as client:
            for entry in await client.list_requests(limit):
                table.add_row(
                    entry.request_id,
                    escape(entry.tier),
                    entry.state,
                    count(entry.prompt_tokens),
                    count(entry.output_tokens),
                    microseconds(entry.age_us),
                    entry.worker_id or "-",
                    entry.attempt or "-",
                    entry.router_id,
                )
    out.print(table if table.row_count else "no request of yours runs or waits")


@friendly
async def explain(
    request_id: Annotated[str, typer.Argument(help="As Accepted or `hyperflexis requests` told it.")],
    target: Targets = DEFAULT_TARGET,
    api_key: ApiKey = None,
) -> None:
    """Shows a request in order of time: every decision, the numbers that decided it, and what then happened."""
    async with AsyncClient(targets_of(target), api_key, retry=PATIENCE) as client:
        details = await client.get_request(request_id)
    summary = details.summary
    out.print(f"[bold]{escape(summary.request_id)}[/]  {escape(summary.model)}, {summary.state}", soft_wrap=True)
    out.print(timeline_table(details))
    if not details.decisions:
        gone = "no decisions: schedulers keep them until two minutes after the end, or none has answered"
        out.print(gone, soft_wrap=True)
    for line in verdict_lines(details):
        out.print(escape(line), soft_wrap=True)


def timeline_table(details: RequestDetails) -> Table:
    """A row per moment: when, how long after the one before it, and what happened."""
    table = _table("after", "since", "what happened")
    table.columns[0].justify = table.columns[1].justify = "right"
    before_us = 0
    for moment in timeline(details):
        since = f"+{microseconds(moment.after_us - before_us)}" if moment.after_us > before_us else ""
        table.add_row(microseconds(moment.after_us), since, escape(moment.told))
        before_us = moment.after_us
    return table


@friendly
async def models(target: Targets = DEFAULT_TARGET, api_key: ApiKey = None) -> None:
    """Lists models and tiers."""
    served = await served_models(targets_of(target), api_key)
    table = _table("model", "context", "vocabulary", "ready workers", "tokenizer")
    for model in served.models:
        tokenizer = "yes" if model.has_tokenizer else "no: prompts are token ids"
        sizes = (count(model.context_length), count(model.vocab_size), count(model.ready_workers))
        table.add_row(escape(model.name), *sizes, tokenizer)
    out.print(table)
    tiers = _table("tier", "TTFT", "TPOT", "longest gap", "weight")
    for tier in served.tiers:
        name = f"{tier.tier} (default)" if tier.tier == served.default_tier else tier.tier
        times = (microseconds(tier.ttft_us), microseconds(tier.tpot_us), microseconds(tier.max_gap_us))
        tiers.add_row(escape(name), *times, f"{tier.weight:g}")
    out.print(tiers)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
