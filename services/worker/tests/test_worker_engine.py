"""The engine behind its socket, as a thread and as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis_common.clock import FakeClock, SystemClock
from hyperflexis_common.config import ModelSettings
from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_common.tokens import pack, unpack
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.engine import frames
from hyperflexis_worker.engine.command_socket import CommandSocket
from hyperflexis_worker.engine.factory import build_engine
from hyperflexis_worker.engine.handle import EngineHandle
from hyperflexis_worker.engine.loop import EngineLoop
from hyperflexis_worker.modelled import reference_tokens
from hyperflexis_worker.steps.sampled import Sampled
from hyperflexis_worker.steps.sequence import Sampling, Sequence
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.step_plan import Chunk

MODEL = ModelSettings(name="m", vocab_size=1_000, context_length=512)


def settings(mode: str, time_scale: float = 0.0) -> WorkerSettings:
    return WorkerSettings(
        worker_id="w", models=[MODEL], engine="modelled", engine_mode=mode, num_blocks=64, time_scale=time_scale
    )


def add(number: int, name: str, max_tokens: int = 8, committed: list[int] | None = None) -> frames.Add:
    return frames.Add(
        number=number,
        request_id=name,
        leader_epoch=1,
        seq=number,
        prompt=pack([1, 2, 3]),
        committed=pack(committed or []),
        max_tokens=max_tokens,
        sampling=Sampling(seed=5),
        arrival_us=0,
        ttft_us=10**15,  # whatever the clock says
        tpot_us=10**6,
        weight=1.0,
        tier="",
    )


@pytest.fixture(params=["thread", "process"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[EngineHandle]:
    handle = EngineHandle(settings(request.param))
    await handle.start()
    yield handle
    await handle.stop()


async def collect(engine: EngineHandle, ends: int) -> tuple[dict[str, list[int]], list[frames.EndedSequence]]:
    """Output tokens by request, and the ends, until `ends` of them came."""
    tokens: dict[str, list[int]] = {}
    ended: list[frames.EndedSequence] = []
    async with asyncio.timeout(20):
        async for event in engine.events():
            if isinstance(event, frames.Stepped):
                for new in event.tokens:
                    assert new.start_index == len(tokens.setdefault(new.request_id, []))
                    tokens[new.request_id] += unpack(new.packed)
                ended += event.ended
                if len(ended) >= ends:
                    break
    return tokens, ended


async def test_tokens_equal_the_reference(engine: EngineHandle) -> None:
    for number in range(1, 6):
        engine.send(add(number, f"r{number}"))
    tokens, ended = await collect(engine, 5)
    assert {end.reason for end in ended} == {sampling_pb2.FINISH_REASON_LENGTH}
    assert set(tokens) == {f"r{number}" for number in range(1, 6)}
    assert all(made == reference_tokens([1, 2, 3], 5, 8, 1_000) for made in tokens.values())


async def test_what_can_never_fit_ends_with_the_reason(engine: EngineHandle) -> None:
    engine.send(add(1, "big", max_tokens=100_000))
    _, (end,) = await collect(engine, 1)
    assert end.reason == sampling_pb2.FINISH_REASON_ERROR
    assert "KV pool" in end.message


async def test_drop_and_revoke() -> None:
    engine = EngineHandle(settings("thread", time_scale=20.0))
    await engine.start()
    try:
        engine.send(add(1, "long", max_tokens=400))
        engine.send(frames.Revoked("unknown", 1, 2))
        engine.send(frames.Drop("long", 1, 1))
        seen: list[frames.FromEngine] = []
        async with asyncio.timeout(10):
            async for event in engine.events():
                seen.append(event)
                if isinstance(event, frames.Stepped) and event.adds_applied == 1 and not event.load.running:
                    break
        assert frames.Revoked("unknown", 1, 2, False) in seen
        assert sum(len(e.tokens) for e in seen if isinstance(e, frames.Stepped)) < 10
    finally:
        await engine.stop()


async def test_a_killed_engine_ends_its_events() -> None:
    engine = EngineHandle(settings("process"))
    await engine.start()
    try:
        async with asyncio.timeout(20):
            async for event in engine.events():
                assert isinstance(event, frames.EngineReady)
                os.kill(engine.pid, signal.SIGKILL)
    finally:
        await engine.stop()


async def test_an_engine_that_reads_nothing_is_stopped_all_the_same() -> None:
    engine = EngineHandle(settings("process"))
    await engine.start()
    os.kill(engine.pid, signal.SIGSTOP)
    for number in range(1, 2_000):  # more than its socket holds
        engine.send(add(number, f"r{number}", committed=[7] * 100))
    async with asyncio.timeout(10):
        await engine.stop(grace_s=0.2)
    assert engine._process is not None and engine._process.poll() is not None


async def test_an_engine_that_cannot_start_says_why() -> None:
    broken = WorkerSettings(worker_id="w", models=[ModelSettings(name="m", path="/nonexistent")], engine="embedded")
    engine = EngineHandle(broken)
    await engine.start()
    try:
        async with asyncio.timeout(40):
            events = [event async for event in engine.events()]
        assert any(isinstance(event, frames.EngineFailed) for event in events)
    finally:
        await engine.stop()


async def test_what_the_engine_did_can_be_logged(tmp_path: Path) -> None:
    handle = EngineHandle(settings("process").model_copy(update={"step_log": tmp_path / "steps"}))
    await handle.start()
    handle.send(add(1, "r1", max_tokens=3))
    async with asyncio.timeout(20):
        async for event in handle.events():
            if isinstance(event, frames.Stepped) and event.ended:
                break
    await handle.stop()
    [path] = (tmp_path / "steps").glob("w-*.jsonl")
    added, first, second, third = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert added["added"] == "r1"
    assert (first["prefill_chunks"], first["decodes"], first["first"], first["busy"]) == ([[3, 0]], 0, ["r1"], True)
    assert (second["decodes"], second["decode_context_tokens"], second["first"]) == (1, 3, [])
    assert (third["last"], third["busy"]) == (["r1"], False)
    assert third["began_us"] >= second["began_us"] + second["took_us"]


class TimedEngine:
    """One whose steps take 10 ms on a fake clock, and who needs 2 ms to tell of each. The shell's commands come from
    `next_command`, once it has nothing to do: until then `idle_us` pass."""

    def __init__(self, idle_us: int = 0) -> None:
        self.clock = FakeClock()
        self.built = build_engine(settings("thread"))
        self.executor = self.built.executor
        self.idle_us = idle_us
        self.commands: list[frames.ToEngine] = []

    def execute(self, chunks: list[Chunk]) -> Sampled:
        self.clock.advance(10_000)
        return self.executor.execute(chunks)

    def forget(self, sequence: Sequence) -> None:
        self.executor.forget(sequence)

    def send(self, message: frames.FromEngine) -> None:
        self.clock.advance(2_000)

    def receive(self, wait_s: float, waker: object = None) -> Iterator[frames.ToEngine]:
        if wait_s:
            self.clock.advance(self.idle_us)
            yield self.commands.pop(0)

    def run(self, *commands: frames.ToEngine) -> SloPolicy:
        self.commands = [*commands, frames.Stop()]
        model = StepTimeModel(10_000.0, 0.0, 0.0, 0.0, 0.0, host_us=0.0)
        built = replace(self.built, executor=self, step_time=model)
        EngineLoop(built, cast(CommandSocket, self), self.clock).run()
        policy = self.built.planner.policy
        assert isinstance(policy, SloPolicy)
        return policy


def test_plans_count_with_what_passes_between_two_steps() -> None:
    policy = TimedEngine().run(add(1, "r1", max_tokens=300))
    assert policy.model.decodes_us(1, 0) == pytest.approx(12_000, rel=0.01)
    assert policy.pace == pytest.approx(1.0)


def test_waiting_for_work_is_not_between_two_steps() -> None:
    requests = [add(number, f"r{number}", max_tokens=3) for number in range(1, 200)]
    policy = TimedEngine(idle_us=900_000).run(*requests)
    assert policy.model.decodes_us(1, 0) == pytest.approx(12_000, rel=0.01)


@pytest.mark.parametrize("leak", [False, True])
def test_an_engine_without_work_checks_its_pool(leak: bool) -> None:
    """A leaked block would cost capacity for ever: better an engine that dies, says why and starts anew."""
    engine = build_engine(settings("thread"))
    if leak:
        engine.pool.allocate(1)
    ours, theirs = socket.socketpair()
    checks: list[str] = []

    def run() -> None:
        try:
            EngineLoop(engine, CommandSocket(theirs), SystemClock()).run()
        except AssertionError as error:
            checks.append(str(error))
        finally:
            theirs.close()

    thread = threading.Thread(target=run)
    thread.start()
    ours.sendall(frames.encode(add(1, "r1")))
    thread.join(10 if leak else 0.5)
    if leak:
        assert checks and "has 0 owners, the pool counts 1" in checks[0]
    else:
        assert thread.is_alive() and not checks
        ours.sendall(frames.encode(frames.Stop()))
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
