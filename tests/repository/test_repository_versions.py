"""One version for each part: its pyproject.toml, the head of its CHANGELOG and what is installed agree."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = ["services/router", "services/scheduler", "services/worker", "services/scaler"]
PARTS = ["proto", "libs/common", *SERVICES, "clients/python", "sim", "cli"]
RELEASE = re.compile(r"^## \[?(\d+\.\d+\.\d+)\b", re.MULTILINE)


def project(part: str) -> dict[str, object]:
    document = tomllib.loads((ROOT / part / "pyproject.toml").read_text(encoding="utf-8"))
    found: dict[str, object] = document["project"]
    return found


@pytest.mark.parametrize("part", PARTS)
def test_installed_version_is_that_of_the_source(part: str) -> None:
    described = project(part)
    assert importlib.metadata.version(str(described["name"])) == described["version"]


@pytest.mark.parametrize("part", PARTS)
def test_changelog_leads_with_the_version(part: str) -> None:
    changelog = (ROOT / part / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "[Unreleased]" in changelog, f"{part}/CHANGELOG.md needs an [Unreleased] section"
    releases = RELEASE.findall(changelog)
    assert releases and releases[0] == project(part)["version"], f"{part}: newest entry is {releases[:1]}"


@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_on_the_same_python_and_licence(part: str) -> None:
    described = project(part)
    assert described["requires-python"] == ">=3.11"
    assert described["license"] in ({"text": "Apache-2.0"}, "Apache-2.0")


@pytest.mark.parametrize("part", PARTS)
def test_internal_dependencies_stay_within_one_protocol(part: str) -> None:
    """hyperflexis-* ranges have an upper bound: peers of N and N-1 interoperate, libraries of N+1 may not."""
    dependencies = project(part).get("dependencies", [])
    assert isinstance(dependencies, list)
    internal = [name for name in dependencies if name.startswith("hyperflexis-")]
    assert all("<" in name for name in internal), internal
