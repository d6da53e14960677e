"""ProcessProvider over real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from hyperflexis_scaler.core.instance import Instance
from hyperflexis_scaler.providers.proc_table import Process, read_environment, send_signal
from hyperflexis_scaler.providers.process import LOGS_KEPT, ProcessProvider
from hyperflexis_scaler.providers.provider import Launch, NotDone, ProviderAway

from .conftest import process_of, processes_of

KEY = "chat-1-a-1"
LAUNCH = Launch(KEY, "1-a-1", "chat")


class Unrecorded(Exception):
    """Stands for a crash between the start and the record."""


@pytest.fixture
def make(tmp_path: Path, state_dir: Path, sleeper: list[str]) -> Callable[..., ProcessProvider]:
    def provider(cell: str = "cell", **options: Callable[[str], None]) -> ProcessProvider:
        return ProcessProvider(cell, state_dir, tmp_path / "logs", sleeper, **options)

    return provider


async def listed(provider: ProcessProvider) -> Instance | None:
    instances = await provider.list()
    assert len(instances) <= 1
    return instances[0] if instances else None


async def until_up(tmp_path: Path) -> None:
    """Its output is in its log: it runs, and does as its flags say."""
    log = tmp_path / "logs" / f"{KEY}.log"
    for _ in range(300):
        if log.exists() and log.read_text() == "up\n":
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it does not come up")


async def until_ended(provider: ProcessProvider) -> Instance:
    for _ in range(300):
        instance = await listed(provider)
        if instance is not None and not instance.alive:
            return instance
        await asyncio.sleep(0.02)
    raise AssertionError("it lives")


async def until_gone(provider: ProcessProvider) -> None:
    for _ in range(300):
        if await listed(provider) is None:
            return
        await provider.kill(KEY)
        await asyncio.sleep(0.02)
    raise AssertionError("it is still listed")


async def test_a_started_process_is_listed_by_any_provider_until_killed(make: Callable[..., ProcessProvider]) -> None:
    provider = make()
    await provider.start(LAUNCH)
    for finder in (provider, make()):
        instance = await listed(finder)
        assert instance is not None and instance.alive
        assert (instance.instance_id, instance.action_id, instance.group) == (KEY, "1-a-1", "chat")
        assert 0 <= instance.age_us < 10_000_000
    await provider.stop(KEY)
    ended = await until_ended(provider)
    assert "killed by signal 15" in ended.detail and f"{KEY}.log" in ended.detail
    await until_gone(provider)


async def test_the_worker_gets_its_tags_its_log_and_a_session_of_its_own(
    make: Callable[..., ProcessProvider], state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPERFLEXIS_FAULTS", "crash_after=started")
    provider = make()
    await provider.start(Launch(KEY, "1-a-1", "chat", ["--anything"], {"EXTRA": "1"}))
    await until_up(tmp_path)
    process = process_of(state_dir)
    assert process.session == process.pid
    environment = read_environment(process.pid)
    assert json.loads(environment["HYPERFLEXIS_WORKER_TAGS"]) == {"cell": "cell", "action_id": "1-a-1", "group": "chat"}
    assert environment["EXTRA"] == "1" and "HYPERFLEXIS_FAULTS" not in environment
    descriptors = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")}
    assert descriptors <= {"/dev/null", str(tmp_path / "logs" / f"{KEY}.log")}, "nothing of the scaler's is inherited"
    await until_gone(provider)


async def test_a_process_without_a_record_is_found_by_its_environment(
    make: Callable[..., ProcessProvider], state_dir: Path
) -> None:
    def crash(point: str) -> None:
        assert point == "started"
        raise Unrecorded

    with pytest.raises(Unrecorded):
        await make(passed=crash).start(LAUNCH)
    assert not list(state_dir.glob("*.json"))
    instance = await listed(make())
    assert instance is not None and instance.alive and instance.instance_id == KEY
    assert [path.stem for path in state_dir.glob("*.json")] == [KEY]
    await until_gone(make())
    assert not processes_of(state_dir)


async def test_another_cell_sees_nothing_without_a_record(
    make: Callable[..., ProcessProvider], state_dir: Path
) -> None:
    await make().start(LAUNCH)
    (state_dir / f"{KEY}.json").unlink()
    assert await listed(make(cell="another")) is None
    await until_gone(make())


async def test_the_deaf_and_the_stopped_can_be_killed(
    make: Callable[..., ProcessProvider], state_dir: Path, tmp_path: Path
) -> None:
    provider = make()
    await provider.start(Launch(KEY, "1-a-1", "chat", ["--deaf"]))
    await until_up(tmp_path)
    process = process_of(state_dir)
    os.kill(process.pid, signal.SIGSTOP)
    await provider.stop(KEY)
    instance = await listed(provider)
    assert instance is not None and instance.alive
    await until_gone(provider)
    assert not processes_of(state_dir)


@pytest.mark.parametrize("flags", [["--child"], ["--child", "--detach"]])
async def test_what_a_dead_worker_leaves_behind_is_killed(
    make: Callable[..., ProcessProvider], state_dir: Path, tmp_path: Path, flags: list[str]
) -> None:
    provider = make()
    await provider.start(Launch(KEY, "1-a-1", "chat", flags))
    await until_up(tmp_path)
    os.kill(json.loads((state_dir / f"{KEY}.json").read_text())["pid"], signal.SIGKILL)
    ended = await until_ended(provider)
    assert not ended.alive and process_of(state_dir)
    await until_gone(provider)
    assert not processes_of(state_dir)


async def test_the_exit_status_is_told(make: Callable[..., ProcessProvider]) -> None:
    provider = make()
    await provider.start(Launch(KEY, "1-a-1", "chat", ["--die"]))
    assert "exit status 3" in (await until_ended(provider)).detail
    await until_gone(provider)


async def test_a_pid_used_again_is_not_ours(make: Callable[..., ProcessProvider], state_dir: Path) -> None:
    provider = make()
    await provider.start(LAUNCH)
    path = state_dir / f"{KEY}.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"pid": os.getppid()}))
    instance = await listed(provider)
    assert instance is not None and not instance.alive
    await provider.stop(KEY)
    assert not send_signal(Process(os.getpid(), 1, 0, "R"), signal.SIGKILL), "another start, another process"
    await until_gone(provider)


async def test_a_command_that_cannot_start_says_so(tmp_path: Path, state_dir: Path) -> None:
    provider = ProcessProvider("cell", state_dir, tmp_path / "logs", ["/nonexistent/worker"])
    with pytest.raises(NotDone, match="/nonexistent/worker"):
        await provider.start(LAUNCH)
    assert await listed(provider) is None


async def test_a_machine_that_cannot_be_read_is_away_not_empty(
    make: Callable[..., ProcessProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: str) -> list[str]:
        raise OSError("too many open files")

    provider = make()
    monkeypatch.setattr(os, "listdir", fails)
    with pytest.raises(ProviderAway, match="too many open files"):
        await provider.list()
    with pytest.raises(ProviderAway, match="too many open files"):
        await provider.kill(KEY)


async def test_files_that_are_no_records_are_left_alone(make: Callable[..., ProcessProvider], state_dir: Path) -> None:
    state_dir.mkdir()
    for name, text in (("a.json", "{"), ("b.json", "[]"), ("c.json", '{"pid": 1}')):
        (state_dir / name).write_text(text)
    assert await listed(make()) is None
    assert len(list(state_dir.iterdir())) == 3


async def test_old_logs_go_others_stay(make: Callable[..., ProcessProvider], tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "router.log").touch()
    for number in range(LOGS_KEPT + 5):
        path = logs / f"chat-1-a-{number + 10}.log"
        path.touch()
        os.utime(path, (number, number))
    await make().start(LAUNCH)
    names = {path.name for path in logs.iterdir()}
    assert len(names) == LOGS_KEPT + 2 and "router.log" in names and "chat-1-a-10.log" not in names
    await until_gone(make())
