"""One measured replay from rows to files: what `replay` and `demo` have in common."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from hyperflexis_cli.display import live_progress
from hyperflexis_cli.plan import Planned, Shape, plan
from hyperflexis_cli.record import Record
from hyperflexis_cli.replay import Objective, Replay
from hyperflexis_cli.report import render_report
from hyperflexis_cli.summary import summarise
from hyperflexis_cli.trace import TraceError, TraceRow
from hyperflexis_client import AsyncClient, InvalidRequest, Model, Models


@dataclass(frozen=True, slots=True)
class Measured:
    """A replay that has ended."""

    records: list[Record]
    summary: dict[str, Any]

    @property
    def clean(self) -> bool:
        """Nothing was lost, repeated or failed."""
        return not (self.summary["lost_tokens"] or self.summary["repeated_tokens"] or self.summary["failed"])

    async def write(self, json_path: Path | None, html_path: Path | None, about: Mapping[str, str], title: str) -> None:
        """Writes what was asked for; missing directories are made."""
        if json_path is not None:
            json_path.parent.mkdir(parents=True, exist_ok=True)
            json_path.write_text(json.dumps(self.summary, indent=2) + "\n", encoding="utf-8")
        if html_path is not None:
            html_path.parent.mkdir(parents=True, exist_ok=True)
            page = await asyncio.to_thread(render_report, self.records, self.summary, about, title)
            html_path.write_text(page, encoding="utf-8")


def choose_model(models: Models, name: str | None) -> Model:
    """The named model, or the first. Raises InvalidRequest."""
    if not models.models:
        raise InvalidRequest("the router serves no model")
    found = models.models[0] if name is None else models.model(name)
    if found is None:
        raise InvalidRequest(f"no model {name!r}; there are {', '.join(model.name for model in models.models)}")
    return found


def make_plan(rows: Sequence[TraceRow], shape: Shape, models: Models, seed: int) -> list[Planned]:
    """The requests to send. Raises TraceError where there are none or their tier is unknown."""
    planned = plan(rows, shape, Random(seed))
    if not planned:
        raise TraceError("nothing to replay: no request arrives within the duration")
    known = {tier.tier for tier in models.tiers}
    unknown = sorted({request.tier for request in planned if request.tier} - known)
    if unknown:
        raise TraceError(f"no tier {unknown[0]!r}; the router has {', '.join(sorted(known))} (see --tier-mix)")
    return planned


async def measure(
    client: AsyncClient,
    planned: Sequence[Planned],
    model: Model,
    console: Console,
    *,
    seed: int,
    max_inflight: int,
    objectives: Mapping[str, Objective] | None = None,
    **about: Any,
) -> Measured:
    """Replays with live progress; `about` goes into the summary."""
    replay = Replay(client, planned, model, seed=seed, max_inflight=max_inflight, objectives=objectives)
    began_s = time.perf_counter()
    async with live_progress(console, replay.progress):
        records = await replay.run()
    wall_s = time.perf_counter() - began_s
    return Measured(records, summarise(records, wall_s, model=model.name, seed=seed, **about))
