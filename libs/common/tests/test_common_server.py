"""Background tasks of a server process."""

from __future__ import annotations

import asyncio
import gc

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
