"""A whole worker, shell and engine: requests, engines that die or hang, and its own end."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from prometheus_client import CollectorRegistry
from worker_process_rig import REFERENCE, FakeRouter, FakeScheduler, eventually, worker_settings

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.step_time import SEEDS
from hyperflexis_worker import shell
from hyperflexis_worker.app import Worker

Update = ws.RequestUpdate


async def test_a_request_runs_to_its_end(scheduler: FakeScheduler, worker: Worker) -> None:
    router = FakeRouter(worker.address)
    await router.open()
    router.listen()
    await scheduler.run("q", 1)
    await router.start("q", 1)
    await eventually(lambda: Update.KIND_FINISHED in scheduler.kinds("q") and "q" in router.finished)
    assert router.tokens["q"] == REFERENCE
    assert scheduler.kinds("q") == [Update.KIND_STARTED, Update.KIND_FIRST_TOKEN, Update.KIND_FINISHED]
    await eventually(lambda: scheduler.report.load.running == 0)
    await router.close()


async def test_it_reports_how_long_its_steps_take(scheduler: FakeScheduler, worker: Worker) -> None:
    """The seed, slowed as the modelled engine is, until the worker has learnt its own."""
    await eventually(lambda: scheduler.report_seqs)
    seed = SEEDS[worker.settings.profile]
    assert scheduler.report.step_time.c0_us == seed.c0_us * worker.settings.time_scale


@pytest.mark.parametrize("mode", ["process", "thread"])
async def test_an_engine_that_dies_loses_its_work_at_once_and_the_next_one_serves(
    scheduler: FakeScheduler, mode: str
) -> None:
    """Work that runs, that waits, of which half is here, and that comes while no engine is there."""
    worker = Worker(worker_settings(scheduler.address, engine_mode=mode, max_num_seqs=1), CollectorRegistry())
    router = FakeRouter(await worker.start())
    await eventually(lambda: scheduler.sessions)
    await router.open()
    router.listen()
    for seq, name in enumerate(("runs", "waits"), 1):
        await scheduler.run(name, seq)
        await router.start(name, seq)
    await eventually(lambda: router.tokens.get("runs"))
    await scheduler.run("half", 3)
    await eventually(lambda: scheduler.report.applied_seq == 3)
    engine = worker._shell._engine
    engine.kill()
    await eventually(
        lambda: all(scheduler.kinds(name)[-1:] == [Update.KIND_LOST] for name in ("runs", "waits", "half"))
    )
    assert scheduler.report.readiness == capability_pb2.READINESS_LOADING
    await router.start("half", 3)
    await scheduler.run("meanwhile", 4)
    await router.start("meanwhile", 4)
    await eventually(lambda: {"runs", "waits", "half", "meanwhile"} == set(router.gone))
    await eventually(lambda: Update.KIND_LOST in scheduler.kinds("meanwhile"))
    await eventually(lambda: scheduler.report.readiness == capability_pb2.READINESS_READY)
    assert worker._shell._engine is not engine
    load = scheduler.report.load
    assert (load.waiting, load.running, load.stalled_us) == (0, 0, 0), "nothing that nobody works on"
    await scheduler.run("half", 5)
    await router.start("half", 5)
    await eventually(lambda: "half" in router.finished)
    assert router.tokens["half"] == REFERENCE
    await router.close()
    await worker.close()


async def test_an_engine_that_hangs_is_replaced(
    scheduler: FakeScheduler, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "ENGINE_HUNG_US", 300_000)
    router = FakeRouter(worker.address)
    await router.open()
    router.listen()
    await scheduler.run("q", 1)
    await router.start("q", 1)
    await eventually(lambda: router.tokens.get("q"))
    pid = worker._shell._engine.pid
    os.kill(pid, signal.SIGSTOP)
    await eventually(lambda: Update.KIND_LOST in scheduler.kinds("q"))
    await eventually(lambda: scheduler.report.readiness == capability_pb2.READINESS_READY)
    assert worker._shell._engine.pid != pid
    await router.close()


async def test_a_draining_worker_ends_what_runs_and_takes_nothing_new(scheduler: FakeScheduler, worker: Worker) -> None:
    router = FakeRouter(worker.address)
    await router.open()
    router.listen()
    await scheduler.run("runs", 1)
    await router.start("runs", 1)
    await eventually(lambda: router.tokens.get("runs"))
    draining = asyncio.create_task(worker._shell.drain(10.0))
    await eventually(lambda: scheduler.report.readiness == capability_pb2.READINESS_DRAINING)
    await scheduler.run("late", 2)
    await eventually(lambda: scheduler.kinds("late") == [Update.KIND_REJECTED])
    await draining
    await eventually(lambda: "runs" in router.finished)
    assert router.tokens["runs"] == REFERENCE
    await router.close()


async def test_a_worker_that_is_refused_for_good_leaves(scheduler: FakeScheduler) -> None:
    rejected = ws.Rejected(reason=ws.Rejected.REASON_INCARNATION, message="taken", permanent=True)
    scheduler.answer = ws.WorkerSessionResponse(epoch=1, rejected=rejected)
    worker = Worker(worker_settings(scheduler.address), CollectorRegistry())
    await worker.start()
    assert await asyncio.wait_for(worker.serve(), 10) == 1


async def test_a_closed_worker_leaves_nothing_behind(scheduler: FakeScheduler) -> None:
    """No task that nobody waits for, no engine."""
    before = asyncio.all_tasks()
    worker = Worker(worker_settings(scheduler.address), CollectorRegistry())
    router = FakeRouter(await worker.start())
    await eventually(lambda: scheduler.sessions)
    await router.open()
    router.listen()
    await scheduler.run("q", 1)
    await router.start("q", 1)
    await eventually(lambda: router.tokens.get("q"))
    process = worker._shell._engine._process
    assert process is not None
    await worker.close()
    assert process.poll() is not None
    await router.close()
    await scheduler.stop()
    await eventually(lambda: asyncio.all_tasks() <= before, limit_s=5)
