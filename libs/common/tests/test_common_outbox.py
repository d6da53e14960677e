"""The write side of a stream: bounded, ended after what is queued, or cut."""

from __future__ import annotations

import pytest

from hyperflexis_common.outbox import Outbox, OutboxFull


async def test_close_ends_after_what_is_queued_and_takes_nothing_more() -> None:
    outbox: Outbox[int] = Outbox()
    outbox.put(1)
    outbox.close()
    outbox.put(2)
    assert [message async for message in outbox] == [1]
    assert outbox.closed and not outbox.was_cut


async def test_a_full_one_refuses_and_closes() -> None:
    outbox: Outbox[int] = Outbox(limit=2)
    outbox.put(1)
    outbox.put(2)
    with pytest.raises(OutboxFull, match="2 messages"):
        outbox.put(3)
    outbox.put(4)
    assert [message async for message in outbox] == [1, 2]


async def test_cut_drops_what_is_queued() -> None:
    for closed in (False, True):
        outbox: Outbox[int] = Outbox()
        outbox.put(1)
        if closed:
            outbox.close()
        outbox.cut()
        outbox.put(2)
        assert [message async for message in outbox] == []
        assert outbox.closed and outbox.was_cut
