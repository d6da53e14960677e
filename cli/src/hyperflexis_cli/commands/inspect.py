"""`hyperflexis requests`, `explain`, `models`, `cluster`: what runs, where, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as wire
from hyperflexis_cli.cluster import find_leader, look_at_cluster, watch_cluster
from hyperflexis_cli.console import (
    DEFAULT_TARGET,
    PATIENCE,
    ApiKey,
    Targets,
    fail,
    friendly,
    out,
    served_models,
    targets_of,
)
from hyperflexis_cli.figures import count, microseconds
from hyperflexis_cli.stack import RUNS, STACK_FILE
from hyperflexis_cli.timeline import timeline, verdict_lines
from hyperflexis_client import AsyncClient, RequestDetails

DEFAULT_SCHEDULERS = ["127.0.0.1:50052"]


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


@friendly
async def cluster(
    scheduler: Annotated[
        str,
        typer.Option(
            envvar="HYPERFLEXIS_SCHEDULERS",
            help="Schedulers as host:port, with commas. Default: those of the stack that runs in this directory, else "
            + DEFAULT_SCHEDULERS[0],
            show_default=False,
        ),
    ] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on showing it.")] = False,
) -> None:
    """Shows the workers as the leading scheduler sees them."""
    schedulers = targets_of(scheduler) if scheduler else running_schedulers() or DEFAULT_SCHEDULERS
    leader = await find_leader(schedulers)
    if leader is None:
        fail(f"no leader among {', '.join(schedulers)} (name the schedulers with --scheduler)")
    if not watch:
        seen = await look_at_cluster([leader])
        if seen is None:
            fail(f"the leader {leader} does not answer")
        out.print(cluster_table(seen, leader))
        return
    with Live(console=out, auto_refresh=False) as live:
        async for message in watch_cluster(leader):
            live.update(cluster_table(message, leader), refresh=True)


def cluster_table(cluster: wire.WatchClusterResponse, leader: str) -> Table:
    """A row per worker."""
    title = (
        f"leader {leader}, epoch {cluster.fence.epoch}: {cluster.active} requests placed, {cluster.held} held, "
        f"{len(cluster.routers)} routers"
    )
    columns = ("worker", "address", "model", "state", "running", "waiting", "queued tokens", "free blocks", "silent")
    table = _table(*columns, title=title)
    for worker in cluster.workers:
        load = worker.load
        table.add_row(
            worker.identity.worker_id,
            worker.address,
            escape(worker.model),
            worker_state(worker),
            count(load.running),
            count(load.waiting),
            count(load.queued_prefill_tokens),
            f"{count(load.kv.free_blocks)}/{count(load.kv.total_blocks)}",
            microseconds(worker.silent_us),
        )
    return table


def worker_state(worker: wire.ClusterWorker) -> str:
    """ready, loading …; hung and disconnected come first."""
    if worker.hung:
        return "hung"
    if worker.disconnected:
        return "disconnected"
    return capability_pb2.Readiness.Name(worker.readiness).removeprefix("READINESS_").lower()


def running_schedulers() -> Sequence[str]:
    """Those of the newest stack that `hyperflexis up` runs in this directory."""
    for path in sorted(Path(RUNS).glob(f"*/{STACK_FILE}"), reverse=True):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            os.kill(run["pid"], 0)
        except (OSError, ValueError, KeyError):
            continue
        return [address for name, address in run["addresses"].items() if name.startswith("scheduler-")]
    return ()


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
