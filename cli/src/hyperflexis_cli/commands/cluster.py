"""`hyperflexis cluster` and `top`: the workers, once and live."""

from __future__ import annotations

from rich.live import Live

from hyperflexis_cli.cluster import look_at_cluster, watch_cluster
from hyperflexis_cli.cluster_view import cluster_table, top_view
from hyperflexis_cli.console import fail, friendly, out
from hyperflexis_cli.leader import Scheduler, leader_of


@friendly
async def cluster(scheduler: Scheduler = "") -> None:
    """Shows the workers as the leading scheduler sees them."""
    leader = await leader_of(scheduler)
    seen = await look_at_cluster([leader])
    if seen is None:
        fail(f"the leader {leader} does not answer")
    out.print(cluster_table(seen, leader))


@friendly
async def top(scheduler: Scheduler = "") -> None:
    """Shows it live, with more: roles, links between workers, requests that move, blocks and tiers. Ctrl-C ends it."""
    leader = await leader_of(scheduler)
    with Live(console=out, auto_refresh=False, screen=out.is_terminal) as live:
        async for message in watch_cluster(leader):
            live.update(top_view(message, leader), refresh=True)
