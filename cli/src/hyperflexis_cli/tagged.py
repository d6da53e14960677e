"""Processes of this machine that belong to one run of a stack, found by their environment.

Workers are children of the scaler and outlive it by design; their engines are children of theirs. Whatever the
family tree has become, the run's name in the environment stays.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

RUN_VARIABLE = "HYPERFLEXIS_STACK_RUN"
ACTION_VARIABLE = "HYPERFLEXIS_SCALER_ACTION_ID"
GROUP_VARIABLE = "HYPERFLEXIS_SCALER_GROUP"
"""Set by the scaler's process provider: `<group>-<action>` names the worker."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """One running process of a run."""

    pid: int
    worker: str
    """Name of the worker that it is, or is a part of; empty for other services."""
    leads: bool
    """It is the main process of its session."""


def tagged_processes(run: str) -> list[Tagged]:
    """The run's processes, this one excepted. Only Linux tells; elsewhere there are none."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        pid = int(directory.name)
        try:
            environment = _environment(directory)
            state, session = _state_and_session(directory)
        except (OSError, ValueError, IndexError):
            continue  # it has ended, or is somebody else's
        if pid == os.getpid() or state in "ZX" or environment.get(RUN_VARIABLE) != run:
            continue
        action, group = environment.get(ACTION_VARIABLE, ""), environment.get(GROUP_VARIABLE, "")
        found.append(Tagged(pid, f"{group}-{action}" if action else "", session == pid))
    return found


def end_tagged(run: str, grace_s: float) -> list[int]:
    """SIGTERM to all, SIGKILL to who stays after `grace_s`; the pids that had to be killed. Blocks."""
    send_all(run, signal.SIGTERM)
    deadline_s = time.monotonic() + grace_s
    while tagged_processes(run) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    killed: list[int] = []
    # A process may fork between the listing and the signal: until none is left.
    while (left := send_all(run, signal.SIGKILL)) and len(killed) < 10_000:
        killed += left
        time.sleep(0.02)
    return sorted(set(killed))


def send_all(run: str, number: signal.Signals) -> list[int]:
    """Signals every process of the run; the pids that were there."""
    pids = []
    for process in tagged_processes(run):
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            continue
        pids.append(process.pid)
    return pids


def _environment(directory: Path) -> dict[str, str]:
    entries = (directory / "environ").read_bytes().split(b"\0")
    pairs = (os.fsdecode(entry).partition("=") for entry in entries if b"=" in entry)
    return {name: value for name, _, value in pairs}


def _state_and_session(directory: Path) -> tuple[str, int]:
    # The command's name stands in parentheses and may itself contain some.
    fields = (directory / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[3])
