"""A model that one worker serves: whatever goes wrong there, there is nowhere else to go."""

from __future__ import annotations

from functools import partial

import pytest
from virtual_cell import VirtualCell
from virtual_process import SECOND

from hyperflexis.common.v1 import sampling_pb2


def ready_cell(seed: int) -> VirtualCell:
    cell = VirtualCell(seed, workers=1)
    cell.time.run_until(cell.time.now_us + SECOND)
    return cell


@pytest.mark.parametrize("seed", range(5))
def test_tokens_that_died_with_their_router_are_made_anew_where_they_were_made(seed: int) -> None:
    """The first router told the worker to forget the request, then died with the tokens its client had not got."""
    cell = ready_cell(seed)
    client = cell.generate("q", [1, 2, 3], 20)
    cell.time.run_until(cell.time.now_us + 3 * SECOND)
    assert client.ended is not None
    cell.kill_router(0)
    client.ended, client.tokens = None, client.tokens[:10]
    cell.resume(client, 1)
    cell.time.run_until(cell.time.now_us + 5 * SECOND, lambda: client.ended is not None)
    assert client.ended is not None and client.ended.reason == sampling_pb2.FINISH_REASON_LENGTH
    assert client.tokens == client.reference


@pytest.mark.parametrize("seed", range(5))
def test_requests_that_come_while_the_engine_starts_again_end_well(seed: int) -> None:
    cell = ready_cell(seed)
    worker = cell.workers["w0"]
    for number in range(12):
        cell.time.after(number * 1_000, partial(cell.generate, f"q{number}", [1, 2, number], 10))
    cell.time.after(6_000, lambda: worker.deliver(worker.kill_engine))
    cell.time.run_until(cell.time.now_us + SECOND // 2)
    clients = list(cell.clients.values())
    cell.time.run_until(cell.time.now_us + 10 * SECOND, lambda: all(client.ended for client in clients))
    assert [client.tokens == client.reference for client in clients] == [True] * 12
    assert max(client.ended.attempts for client in clients if client.ended) <= 3
    assert worker.core.requests.load(worker.now_us() + 60 * SECOND).stalled_us == 0
