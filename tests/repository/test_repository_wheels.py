"""Each wheel of dist/ works installed alone: with the wheels it names, what it needs from the index, nothing else.

`make test-wheels` builds dist/ first. Peers are absent on purpose: a service must start without them.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_ports

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
PARTS = {
    "hyperflexis-proto": "proto",
    "hyperflexis-common": "libs/common",
    "hyperflexis-router": "services/router",
    "hyperflexis-scheduler": "services/scheduler",
    "hyperflexis-worker": "services/worker",
    "hyperflexis-scaler": "services/scaler",
    "hyperflexis-client": "clients/python",
    "hyperflexis-sim": "sim",
    "hyperflexis-cli": "cli",
}
SERVICES = ["router", "scheduler", "worker", "scaler"]

NOBODY = "127.0.0.1:9"
"""The discard port: nothing listens there."""

STACK = f"""
redis: {{url: "redis://{NOBODY}/0"}}
models:
  - {{name: tiny, vocab_size: 32000}}
tiers:
  - {{name: standard, ttft_ms: 1000, tpot_ms: 100}}
default_tier: standard
router: {{schedulers: ["{NOBODY}"]}}
worker: {{model: tiny, engine: modelled, schedulers: ["{NOBODY}"]}}
scaler: {{schedulers: ["{NOBODY}"]}}
"""

pytestmark = [pytest.mark.wheels, pytest.mark.timeout(600)]


def internal_needs(name: str) -> set[str]:
    """The distribution itself and every one of ours it depends on, directly or not."""
    document = tomllib.loads((ROOT / PARTS[name] / "pyproject.toml").read_text(encoding="utf-8"))
    named = [re.split(r"[\[<>=!~ ;]", need)[0] for need in document["project"].get("dependencies", [])]
    needs = {name}
    for need in named:
        if need in PARTS:
            needs |= internal_needs(need)
    return needs


def wheel_of(name: str) -> Path:
    found = list(DIST.glob(f"{name.replace('-', '_')}-*.whl"))
    assert len(found) == 1, f"dist/ must hold one wheel of {name}, found {len(found)}; run `make wheels`"
    return found[0]


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lend the new one our packages or settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HYPERFLEXIS_", "VIRTUAL_ENV"))}


def install(name: str, into: Path) -> Path:
    """A fresh environment with one distribution; returns its python."""
    venv.create(into, with_pip=False)
    python = into / "bin" / "python"
    wheels = [str(wheel_of(need)) for need in sorted(internal_needs(name))]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", *wheels],
        check=True,
        env=clean_environment(),
    )
    return python


def ask(python: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python), *arguments], cwd=cwd, env=clean_environment(), capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hyperflexis-wheel-") as directory:
        yield Path(directory)


def line_within(process: subprocess.Popen[str], limit_s: float) -> str:
    """The first line of stdout; fails with stderr's end where none comes in time."""
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], limit_s)
    return process.stdout.readline() if readable else ""


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_alone_helps_starts_answers_and_stops(service: str, place: Path) -> None:
    python = install(f"hyperflexis-{service}", place / "venv")
    module = f"hyperflexis_{service}"
    assert ask(python, place, "-c", "import torch").returncode != 0, "torch came along uninvited"

    help_text = ask(python, place, "-m", module, "--help")
    assert help_text.returncode == 0, help_text.stderr
    assert "--listen" in help_text.stdout

    stack = place / "hyperflexis.yaml"
    stack.write_text(STACK, encoding="utf-8")
    flags = ["--config", str(stack), "--listen", f"127.0.0.1:{free_ports(1)[0]}"]
    assert ask(python, place, "-m", module, *flags, "--health").returncode == 1, "healthy before it runs"

    log = place / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [str(python), "-m", module, *flags],
            cwd=place,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            ready = line_within(process, 30)
            assert ready.startswith(f"ready service={service} "), f"{ready!r}\n{log.read_text()[-4_000:]}"
            health = ask(python, place, "-m", module, *flags, "--health")
            assert health.returncode == 0, health.stderr
            started = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0, log.read_text()[-4_000:]
            assert time.monotonic() - started < 15
        finally:
            process.kill()


def test_the_client_alone_imports(place: Path) -> None:
    python = install("hyperflexis-client", place / "venv")
    found = ask(python, place, "-W", "error", "-c", "import hyperflexis_client; print(hyperflexis_client.__file__)")
    assert found.returncode == 0, found.stderr
    assert str(place) in found.stdout


def test_the_command_line_helps(place: Path) -> None:
    python = install("hyperflexis-cli", place / "venv")
    found = subprocess.run(
        [str(python.with_name("hyperflexis")), "--help"],
        cwd=place,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert "generate" in found.stdout
