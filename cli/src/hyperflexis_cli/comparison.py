"""The same requests under several policies, one after the other: what each made of them, side by side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperflexis_cli.comparison_report import render_comparison
from hyperflexis_cli.examples import examples, gave_way
from hyperflexis_cli.measured import Measured


@dataclass(frozen=True, slots=True)
class Comparison:
    """By policy name, in the order in which they ran."""

    measured: Mapping[str, Measured]

    @property
    def summary(self) -> dict[str, Any]:
        """One summary a policy, each as of a single one."""
        return {"policies": {name: measured.summary for name, measured in self.measured.items()}}

    @property
    def clean(self) -> bool:
        return all(measured.clean for measured in self.measured.values())

    def sentences(self) -> list[str]:
        """What a table does not show: single requests, and how loose ones gave way to tight ones."""
        found = []
        for name, measured in self.measured.items():
            found += [f"{name}: {example}" for example in examples(measured.records)]
            for tier, number in gave_way(measured.records).items():
                found.append(f"{name}: on average {number:,.0f} tighter requests overtook each of tier {tier}")
        return found

    async def write(self, json_path: Path, html_path: Path, about: Mapping[str, str], title: str) -> None:
        """Writes both; missing directories are made."""
        for path in (json_path, html_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(self.summary, indent=2) + "\n", encoding="utf-8")
        runs = [(name, measured.records, measured.summary) for name, measured in self.measured.items()]
        page = await asyncio.to_thread(render_comparison, runs, about, self.sentences(), title)
        html_path.write_text(page, encoding="utf-8")
