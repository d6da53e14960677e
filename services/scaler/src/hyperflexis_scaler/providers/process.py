"""Workers as processes of this machine, which outlive the scaler that started them.

A process is known by its record (pid and start time) and by its environment, which carries the cell, the
state directory and the action: a scaler killed between the start and the record leaves a process that the
next one still finds. Both the main process (leader of its own session) and everything it leaves behind
belong to an instance.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from hyperflexis_scaler.core.instance import Instance
from hyperflexis_scaler.providers.proc_table import (
    Process,
    age_us,
    collect_exit,
    inheritable_descriptors,
    read_environment,
    read_process,
    running_processes,
    send_signal,
)
from hyperflexis_scaler.providers.process_record import ProcessRecord, RecordStore
from hyperflexis_scaler.providers.provider import Launch, NotDone, ProviderAway

log = structlog.get_logger(__name__)

CELL = "HYPERFLEXIS_SCALER_CELL"
STATE_DIR = "HYPERFLEXIS_SCALER_STATE_DIR"
ACTION_ID = "HYPERFLEXIS_SCALER_ACTION_ID"
GROUP = "HYPERFLEXIS_SCALER_GROUP"
WORKER_TAGS = "HYPERFLEXIS_WORKER_TAGS"
NOT_INHERITED = ("HYPERFLEXIS_FAULTS",)
"""Meant for the scaler alone."""

LOGS_KEPT = 100
LOG_NAME = re.compile(r".+-\d+-[0-9a-f]+-\d+\.log")


class Tagged(NamedTuple):
    """What the environment of some running processes says."""

    action_id: str
    group: str
    processes: list[Process]


class ProcessProvider:
    """`command` plus each launch's arguments, in the environment of the scaler plus each launch's."""

    visible_within_us = 2_000_000

    def __init__(
        self,
        cell: str,
        state_dir: Path,
        log_dir: Path,
        command: Sequence[str],
        passed: Callable[[str], None] = lambda point: None,
    ) -> None:
        """`passed` is told of the points "started" and "state_written"."""
        self._cell = cell
        self._records = RecordStore(state_dir.resolve())
        self._log_dir = log_dir.resolve()
        self._command = list(command)
        self._passed = passed
        self._ages: dict[str, int] = {}
        self._ends: dict[str, str] = {}

    async def list(self) -> Sequence[Instance]:
        # Reading /proc takes some ten microseconds a process, too long for an event loop on a large machine.
        try:
            return await asyncio.to_thread(self._list)
        except OSError as error:
            raise ProviderAway(f"cannot read the processes: {error}") from error

    async def start(self, launch: Launch) -> None:
        try:
            pid = self._spawn(launch)
        except OSError as error:
            raise NotDone(f"cannot start {self._command[0]}: {error}") from error
        self._passed("started")
        process = read_process(pid)
        if process is not None:
            self._record(ProcessRecord(launch.instance_id, launch.action_id, launch.group, pid, process.start_ticks))
        self._passed("state_written")

    async def stop(self, instance_id: str) -> None:
        try:
            record = self._records.read().get(instance_id)
            main = main_process(record) if record is not None else None
            if main is not None:
                _signal(main, signal.SIGTERM)
        except OSError as error:
            raise ProviderAway(f"cannot stop {instance_id}: {error}") from error

    async def kill(self, instance_id: str) -> None:
        try:
            await asyncio.to_thread(self._kill, instance_id)
        except OSError as error:
            raise ProviderAway(f"cannot kill {instance_id}: {error}") from error

    def _list(self) -> Sequence[Instance]:
        records = self._records.read()
        tagged = self._tagged()
        for instance_id, found in tagged.items():
            main = next((process for process in found.processes if process.pid == process.session), None)
            if instance_id not in records and main is not None:
                record = ProcessRecord(instance_id, found.action_id, found.group, main.pid, main.start_ticks)
                records[instance_id] = record
                self._record(record)
        instances = [self._instance(record) for record in records.values()]
        for key, found in tagged.items():
            if key not in records:
                instances.append(Instance(key, found.action_id, found.group, 0, False, "its main process is gone"))
        self._ages = {key: age for key, age in self._ages.items() if key in records}
        self._ends = {key: end for key, end in self._ends.items() if key in records}
        return instances

    def _instance(self, record: ProcessRecord) -> Instance:
        key = record.instance_id
        main = main_process(record)
        if main is not None:
            self._ages[key] = age_us(main.start_ticks)
            return Instance(key, record.action_id, record.group, self._ages[key])
        if end := collect_exit(record.pid):
            self._ends[key] = end
        detail = f"{self._ends.get(key, 'exit status unknown')}, log {self._log_path(key)}"
        return Instance(key, record.action_id, record.group, self._ages.get(key, 0), False, detail)

    def _tagged(self) -> dict[str, Tagged]:
        """Running processes of this cell, by instance."""
        found: dict[str, Tagged] = {}
        for process in running_processes():
            environment = read_environment(process.pid)
            if environment.get(CELL) != self._cell or environment.get(STATE_DIR) != str(self._records.directory):
                continue
            action_id, group = environment.get(ACTION_ID, ""), environment.get(GROUP, "")
            if action_id and group:
                found.setdefault(f"{group}-{action_id}", Tagged(action_id, group, [])).processes.append(process)
        return found

    def _kill(self, instance_id: str) -> None:
        record = self._records.read().get(instance_id)
        main = main_process(record) if record is not None else None
        tagged = self._tagged().get(instance_id)
        victims = {process.pid: process for process in tagged.processes} if tagged is not None else {}
        if main is not None:
            # Its session holds also what cleared its environment. Only while the leader runs: later the
            # session's number may be another's.
            victims |= {process.pid: process for process in running_processes() if process.session == main.pid}
            victims[main.pid] = main
        for process in victims.values():
            _signal(process, signal.SIGKILL)
        if not victims:
            self._records.remove(instance_id)

    def _spawn(self, launch: Launch) -> int:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._prune_logs()
        environment = {key: value for key, value in os.environ.items() if key not in NOT_INHERITED}
        environment.update(launch.environment)
        environment[CELL] = self._cell
        environment[STATE_DIR] = str(self._records.directory)
        environment[ACTION_ID] = launch.action_id
        environment[GROUP] = launch.group
        tags = {"cell": self._cell, "action_id": launch.action_id, "group": launch.group}
        environment[WORKER_TAGS] = json.dumps(tags)
        appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return os.posix_spawnp(
            self._command[0],
            [*self._command, *launch.arguments],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self._log_path(launch.instance_id)), appending, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                *((os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in inheritable_descriptors()),
            ],
            # Its own session: no signal that ends the scaler's reaches it.
            setsid=True,
            # A worker must not start with what asyncio blocked or ignored.
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGPIPE),
        )

    def _record(self, record: ProcessRecord) -> None:
        try:
            self._records.write(record)
        except OSError as error:
            # Its environment still tells whose it is.
            log.warning("cannot write the process record", instance=record.instance_id, error=str(error))

    def _log_path(self, instance_id: str) -> Path:
        return self._log_dir / f"{instance_id}.log"

    def _prune_logs(self) -> None:
        """A crash-loop must not fill the disk: the newest logs stay."""
        logs = [path for path in self._log_dir.glob("*.log") if LOG_NAME.fullmatch(path.name)]
        if len(logs) > LOGS_KEPT:
            for path in sorted(logs, key=lambda path: path.stat().st_mtime)[: len(logs) - LOGS_KEPT]:
                path.unlink(missing_ok=True)


def main_process(record: ProcessRecord) -> Process | None:
    """The recorded process, if that very one still runs."""
    process = read_process(record.pid)
    same = process is not None and process.start_ticks == record.start_ticks and process.runs
    return process if same else None


def _signal(process: Process, number: signal.Signals) -> None:
    try:
        send_signal(process, number)
    except PermissionError as error:
        raise NotDone(f"may not signal process {process.pid}: {error}") from error
