"""How long the last read of a stopped request takes while the link is busy with pre-copies of others.

One engine's mover, in its thread, reads from the pool of another process. Rows for bench/kv.py.
"""

from __future__ import annotations

import select
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from hyperflexis_common.clock import SystemClock
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.kv.mover_thread import MoverThread
from hyperflexis_worker.kv.peer_metadata import PeerMetadata
from hyperflexis_worker.kv.transfers import News, Read, ReadOver
from hyperflexis_worker.kv.transport import Storage, Transport

COPIES = 8
LAST_BLOCKS = 2
UNDER_WAY_S = 0.03
"""So long the pre-copies are under way when the last read comes."""
DUE_US = 1 << 60


class Reader:
    """`make`: the transport, told where to send what it asks for. `fetch`: what the shell does with that; it gives the
    answers to `order`. Not before `link` it reads."""

    def __init__(
        self,
        storage: Storage,
        make: Callable[[Callable[[News], None]], Transport],
        source: Mapping[str, bytes],
        fetch: Callable[[kv.FetchBytes], None],
    ) -> None:
        self._thread = MoverThread("target", storage, lambda tell: [make(tell)], SystemClock())
        self._fetch = fetch
        self.order = self._thread.order
        self._numbers = 0
        self._over: dict[int, float] = {}
        self._linked = False
        self._source = source
        self._storage = storage
        self._thread.start()

    def link(self) -> None:
        storage = self._storage
        peer = PeerMetadata("source", storage.layout, storage.block_bytes, dict(self._source))
        self.order(kv.LinkPeer("source", peer.encode()))
        self._until(lambda: self._linked)

    def close(self) -> None:
        self._thread.close()

    def read(self, first: int, count: int, last: bool = False) -> int:
        self._numbers += 1
        blocks = tuple(range(first, first + count))
        self.order(Read(self._numbers, "source", 1, blocks, blocks, DUE_US, last))
        return self._numbers

    def wait(self, *numbers: int) -> float:
        """Until these are over: when the last one was."""
        self._until(lambda: all(number in self._over for number in numbers))
        return max(self._over[number] for number in numbers)

    def go_on(self, seconds: float) -> None:
        until_s = time.perf_counter() + seconds
        self._until(lambda: time.perf_counter() >= until_s)

    def _until(self, done: Callable[[], bool]) -> None:
        while not done():
            select.select([self._thread], [], [], 0.001)
            for one in self._thread.news():
                self._heard(one, time.perf_counter())

    def _heard(self, news: News, at_s: float) -> None:
        match news:
            case ReadOver(transfer_id, _, _, error):
                assert not error, error
                self._over[transfer_id] = at_s
            case kv.Linked():
                self._linked = bool(news.transport)
            case kv.FetchBytes():
                self._fetch(news)


def row(reader: Reader, total_blocks: int, copy_blocks: int, repeats: int, common: Mapping[str, Any]) -> dict[str, Any]:
    """Alone, and behind pre-copies: and how long these take."""
    alone, behind, copies = [], [], []
    for _ in range(repeats):
        began = time.perf_counter()
        alone.append(reader.wait(reader.read(0, LAST_BLOCKS, last=True)) - began)
        began = time.perf_counter()
        numbers = [reader.read(at % 2 * copy_blocks, copy_blocks) for at in range(COPIES)]
        reader.go_on(UNDER_WAY_S)
        asked = time.perf_counter()
        last = reader.read(total_blocks - LAST_BLOCKS, LAST_BLOCKS, last=True)
        behind.append(reader.wait(last) - asked)
        copies.append(reader.wait(*numbers) - began)
    return {
        **common,
        "measure": "last_read",
        "copies": COPIES,
        "copy_mib": copy_blocks * common["block_kib"] // 1024,
        "alone_ms": round(1e3 * statistics.median(alone), 2),
        "behind_ms": round(1e3 * statistics.median(behind), 2),
        "behind_worst_ms": round(1e3 * max(behind), 2),
        "copies_ms": round(1e3 * statistics.median(copies), 1),
    }
