"""A client that goes on with another router, while the first one lives and does not know it."""

from __future__ import annotations

from functools import partial

import pytest
from virtual_cell import VirtualCell
from virtual_end import leaks
from virtual_process import SECOND

from hyperflexis.common.v1 import sampling_pb2


@pytest.mark.parametrize("grace_us", [0, 10_000, 500_000, 3 * SECOND])
@pytest.mark.parametrize("seed", range(3))
def test_the_end_of_the_older_routers_grace_ends_nothing(grace_us: int, seed: int) -> None:
    cell = VirtualCell(seed)
    cell.time.run_until(cell.time.now_us + SECOND)
    clients = [cell.generate(f"q{i}", [i + 1, 2, 3], 20 + 30 * i, router=0) for i in range(10)]
    cell.time.run_until(cell.time.now_us + 200_000)
    unfinished = [client for client in clients if client.ended is None]
    assert unfinished
    cell.take_redis_away(5 * SECOND)
    for client in unfinished:
        older = client.router
        cell.resume(client, 1)
        cell.time.after(grace_us, partial(older.deliver, partial(cell.end_grace, client, older)))
    cell.settle()
    for client in clients:
        assert client.ended is not None and client.ended.reason == sampling_pb2.FINISH_REASON_LENGTH, client.ended
        assert client.tokens == client.reference
    assert leaks(cell) == []
