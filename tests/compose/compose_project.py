"""One run of deploy/compose/compose.yaml under a project name of its own."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from free_ports import free_ports

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy/compose/compose.yaml"


@dataclass(slots=True)
class ComposeProject:
    """`docker compose` for one project; the front door is published on a free port of this machine."""

    name: str
    port: int = field(default_factory=lambda: free_ports(1)[0])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def compose(self, *arguments: str, limit_s: float = 60) -> str:
        """Runs one compose command; returns its stdout. Raises CalledProcessError with its stderr noted."""
        done = subprocess.run(
            ["docker", "compose", "--project-name", self.name, "--file", str(FILE), *arguments],
            cwd=ROOT,
            env={**os.environ, "HYPERFLEXIS_PORT": str(self.port)},
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
        try:
            done.check_returncode()
        except subprocess.CalledProcessError as error:
            error.add_note(f"{done.stdout[-4_000:]}\n{done.stderr[-4_000:]}")
            raise
        return done.stdout

    def states(self) -> dict[str, str]:
        """Container state and health by service: `running/healthy`, `exited/`."""
        listed = self.compose("ps", "--all", "--format", "json").strip()
        rows = json.loads(listed) if listed.startswith("[") else [json.loads(line) for line in listed.splitlines()]
        return {row["Service"]: f"{row['State']}/{row['Health']}" for row in rows}

    def leader(self) -> str:
        """The scheduler service that holds the lease; empty between two leaders."""
        lease = self.compose("exec", "-T", "redis", "redis-cli", "get", "hfx:leader").strip()
        return str(json.loads(lease)["address"]).partition(":")[0] if lease else ""

    def container(self, service: str) -> str:
        """The id of its one container; asking takes up to seconds, so ask before what is in a hurry."""
        return self.compose("ps", "--quiet", service).strip()

    def kill(self, container: str) -> None:
        """SIGKILL: no farewell of any kind. Docker does not restart what was killed from outside."""
        subprocess.run(["docker", "kill", "--signal", "SIGKILL", container], check=True, capture_output=True)
