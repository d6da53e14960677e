"""Which scheduler leads, of those that the user names or that run here."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hyperflexis_cli.cluster import find_leader
from hyperflexis_cli.console import fail, targets_of
from hyperflexis_cli.stack import RUNS, STACK_FILE

DEFAULT_SCHEDULERS = ["127.0.0.1:50052"]

Scheduler = Annotated[
    str,
    typer.Option(
        envvar="HYPERFLEXIS_SCHEDULERS",
        help="Schedulers as host:port, with commas. Default: those of the stack that runs in this directory, else "
        + DEFAULT_SCHEDULERS[0],
        show_default=False,
    ),
]


async def leader_of(scheduler: str) -> str:
    """host:port. Ends the command where there is none."""
    schedulers = targets_of(scheduler) if scheduler else running_schedulers() or DEFAULT_SCHEDULERS
    leader = await find_leader(schedulers)
    if leader is None:
        fail(f"no leader among {', '.join(schedulers)} (name the schedulers with --scheduler)")
    return leader


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
