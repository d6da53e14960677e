"""Background tasks of a server process."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import pytest

from hyperflexis_common.server import cancel_all, supervise


async def test_a_failure_is_told() -> None:
    failed = asyncio.Event()

    async def breaks() -> None:
        raise ValueError("broken")

    await supervise(breaks(), "breaks", failed.set)
    assert failed.is_set()


async def test_a_task_that_is_cancelled_before_its_first_step_leaves_nothing_unawaited() -> None:
    """Warnings are errors: a coroutine that was never awaited would fail this test."""
    failed = asyncio.Event()
    await cancel_all(supervise(asyncio.sleep(60), "sleeps", failed.set))
    gc.collect()
    assert not failed.is_set()


async def test_a_task_that_loses_its_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperflexis_common.server.INSIST_S", 0.01)

    async def deaf_once() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def fails() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("while it ends")

    tasks = [asyncio.create_task(deaf_once()), asyncio.create_task(fails()), None]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await cancel_all(*tasks)
    assert all(task.done() for task in tasks if task is not None)
    await cancel_all()
