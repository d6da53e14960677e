"""The cluster as tables."""

from __future__ import annotations

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as wire
from hyperflexis_cli.figures import count, microseconds


def cluster_table(cluster: wire.WatchClusterResponse, leader: str) -> Table:
    """A row per worker."""
    title = (
        f"leader {leader}, epoch {cluster.fence.epoch}: {cluster.active} requests placed, {cluster.held} held, "
        f"{len(cluster.routers)} routers"
    )
    columns = ("worker", "address", "model", "state", "role", "running", "waiting", "queued tokens", "free blocks")
    table = _table(*columns, "silent", title=title)
    for worker in cluster.workers:
        load = worker.load
        table.add_row(
            worker.identity.worker_id,
            worker.address,
            escape(worker.model),
            worker_state(worker),
            worker_role(worker),
            count(load.running),
            count(load.waiting),
            count(load.queued_prefill_tokens),
            f"{count(load.kv.free_blocks)}/{count(load.kv.total_blocks)}",
            microseconds(worker.silent_us),
        )
    return table


def top_view(cluster: wire.WatchClusterResponse, leader: str) -> Group:
    """Workers, their caches and links, requests that move, tiers."""
    moves = cluster.moves
    moved = (
        f"moves since this leader began: {count(moves.begun)}, {count(moves.done)} done, {count(moves.failed)} failed"
    )
    return Group(
        cluster_table(cluster, leader), moves_table(cluster, moved), links_table(cluster), tiers_table(cluster)
    )


def moves_table(cluster: wire.WatchClusterResponse, title: str) -> Table:
    """What each worker holds for others, and what is on its way. `moving`: in / out."""
    table = _table("worker", "moving", "leased", "reserved", "quarantined", "tokens in cache", title=title)
    for worker in cluster.workers:
        kv = worker.load.kv
        table.add_row(
            worker.identity.worker_id,
            f"{count(worker.moving_in)} / {count(worker.moving_out)}",
            count(kv.leased_blocks),
            count(kv.reserved_blocks),
            count(kv.quarantined_blocks),
            count(worker.load.decode_context_tokens),
        )
    return table


def links_table(cluster: wire.WatchClusterResponse) -> Table:
    """Who can read whose caches, and how fast."""
    table = _table("reads", "from", "by", "GB/s", "made in", "", title="links")
    for worker in cluster.workers:
        for link in worker.links:
            up = bool(link.transport)
            table.add_row(
                worker.identity.worker_id,
                link.peer.worker_id,
                link.transport or "-",
                f"{link.gigabytes_per_s:.2f}" if up else "-",
                microseconds(link.setup_us) if up else "-",
                escape(link.error),
            )
    return table


def tiers_table(cluster: wire.WatchClusterResponse) -> Table:
    table = _table("tier", "submitted", "placed", "finished", "refused", "output tokens", title="tiers")
    for tier in cluster.tiers:
        numbers = (tier.submitted, tier.placed, tier.finished, tier.refused, tier.output_tokens)
        table.add_row(escape(tier.tier), *map(count, numbers))
    return table


def worker_state(worker: wire.ClusterWorker) -> str:
    """ready, loading …; hung and disconnected come first."""
    if worker.hung:
        return "hung"
    if worker.disconnected:
        return "disconnected"
    return capability_pb2.Readiness.Name(worker.readiness).removeprefix("READINESS_").lower()


def worker_role(worker: wire.ClusterWorker) -> str:
    return capability_pb2.Role.Name(worker.role).removeprefix("ROLE_").lower()


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
