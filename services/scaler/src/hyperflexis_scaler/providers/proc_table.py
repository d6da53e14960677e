"""The machine's processes, from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
DEAD_STATES = "ZXx"
"""Zombies and the dead: nothing of them runs."""


@dataclass(frozen=True, slots=True)
class Process:
    """One life of one process: its pid may be used again, never with the same start."""

    pid: int
    start_ticks: int
    """Clock ticks from the machine's boot to the process's start."""
    session: int
    state: str

    @property
    def runs(self) -> bool:
        return self.state not in DEAD_STATES


def read_process(pid: int) -> Process | None:
    """The process with this pid now, if there is one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command name may hold spaces and parentheses; what follows the last one is regular.
    fields = stat[stat.rindex(")") + 2 :].split()
    return Process(pid=pid, state=fields[0], session=int(fields[3]), start_ticks=int(fields[19]))


def read_environment(pid: int) -> dict[str, str]:
    """The environment that the process was started with; empty where it may not be read or is gone."""
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    entries = (entry.partition(b"=") for entry in block.split(b"\0"))
    return {os.fsdecode(name): os.fsdecode(value) for name, separator, value in entries if separator}


def running_processes() -> Iterator[Process]:
    """Every process that runs, but for this one."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            process = read_process(int(name))
            if process is not None and process.runs:
                yield process


def age_us(start_ticks: int) -> int:
    """Microseconds since a process's start."""
    uptime_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return max(0, int((uptime_s - start_ticks / TICKS_PER_S) * 1e6))


def send_signal(process: Process, number: signal.Signals) -> bool:
    """Signals this very process, never another that got its pid. False where it has ended.

    Raises PermissionError where it belongs to somebody else.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        now = read_process(process.pid)
        if now is None or now.start_ticks != process.start_ticks or not now.runs:
            return False
        signal.pidfd_send_signal(handle, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)


def inheritable_descriptors() -> list[int]:
    """What a child would get beside standard input and output: left to us by whoever started us.

    A worker that outlives the scaler must not hold a pipe open whose end somebody waits for.
    """
    found = []
    for name in os.listdir("/proc/self/fd"):
        # The descriptor that lists the directory is gone by now.
        with contextlib.suppress(OSError):
            if int(name) > 2 and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def collect_exit(pid: int) -> str:
    """How a child of ours ended, once; empty for one that runs or is not ours."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return ""
    if ended == 0:
        return ""
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"killed by signal {-code}"
