"""The state of a local stack as a table."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from hyperflexis.scheduler.v1 import scheduler_service_pb2 as wire
from hyperflexis_cli.cluster_view import worker_state
from hyperflexis_cli.stack import LocalStack

Row = tuple[str, str, str, str, str]
"""Service, id, address, state, pid."""


def status_rows(stack: LocalStack, cluster: wire.WatchClusterResponse | None) -> list[Row]:
    """Every process of the stack; workers as the leader sees them."""
    addresses = stack.addresses
    rows = [
        (name.partition("-")[0], child.service_id or name, addresses.get(name, ""), child.state, str(child.pid or "-"))
        for name, child in stack.children.items()
    ]
    pids = stack.worker_pids()
    seen = {worker.identity.worker_id: worker for worker in cluster.workers} if cluster is not None else {}
    for name in sorted(pids.keys() | seen.keys()):
        worker = seen.get(name)
        state = worker_state(worker) if worker is not None else "starting"
        rows.append(("worker", name, worker.address if worker is not None else "", state, str(pids.get(name, "-"))))
    return rows


def status_table(rows: list[Row], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("service", "id", "address", "state", "pid"):
        table.add_column(column)
    for service, name, address, state, pid in rows:
        table.add_row(service, escape(name), address, f"[{_colour(state)}]{escape(state)}[/]", pid)
    return table


def _colour(state: str) -> str:
    if state == "ready":
        return "green"
    return "yellow" if state in ("new", "starting", "warm", "loading", "draining", "disconnected") else "red"
