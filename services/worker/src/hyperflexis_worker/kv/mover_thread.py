"""The one thread that owns the transports of an engine: orders in, news out, and a socket that wakes the engine."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from collections.abc import Sequence as Rows

import structlog

from hyperflexis_common.clock import Clock
from hyperflexis_worker.kv.mover import Mover
from hyperflexis_worker.kv.peer_metadata import PeerMetadata
from hyperflexis_worker.kv.transfers import MoverFailed, News, Order
from hyperflexis_worker.kv.transport import Storage, Transport

log = structlog.get_logger(__name__)

ORDERS_LIMIT = 4_096
NEWS_LIMIT = 4_096
POLL_S = (0.00005, 0.0002, 0.001)
"""Between two looks at what is under way: at first, after 20 looks without an end, after 100."""
CLOSE_S = 2.0
"""What is under way when the engine leaves may take so long; after that it is left alone, with its pool."""

_abandoned: list[object] = []
"""Transports and pools that a transfer may still write to; they must outlive it."""


class MoverThread:
    """`make_transports` gets what a transport may need to send news by; it is called by the caller's thread, once."""

    def __init__(
        self,
        name: str,
        storage: Storage,
        make_transports: Callable[[Callable[[News], None]], Rows[Transport]],
        clock: Clock,
        at_once: int = 4,
    ) -> None:
        self._orders: queue.Queue[Order | None] = queue.Queue(ORDERS_LIMIT)
        self._news: queue.Queue[News] = queue.Queue(NEWS_LIMIT)
        self._woken: socket.socket | None = None
        self._waker: socket.socket | None = None
        self._storage = storage
        self._transports = make_transports(self._tell)
        self.metadata = PeerMetadata(
            name=name,
            layout=storage.layout,
            block_bytes=storage.block_bytes,
            transports={transport.name: transport.metadata() for transport in self._transports},
        )
        self._mover = Mover(self.metadata, self._transports, clock, self._tell, at_once)
        self._leaving = False
        self._thread = threading.Thread(target=self._run, name="kv-mover", daemon=True)

    def fileno(self) -> int:
        """Readable when there is news. Once started."""
        assert self._woken is not None
        return self._woken.fileno()

    def start(self) -> None:
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._thread.start()

    def order(self, order: Order) -> bool:
        """False, and nothing was ordered, where too much waits already."""
        try:
            self._orders.put_nowait(order)
        except queue.Full:
            return False
        return True

    def news(self) -> list[News]:
        """What came since it was last asked."""
        with contextlib.suppress(BlockingIOError):
            while self._woken is not None and self._woken.recv(4_096):
                pass
        news: list[News] = []
        with contextlib.suppress(queue.Empty):
            while True:
                news.append(self._news.get_nowait())
        return news

    def close(self) -> None:
        """Lets what is under way end, then ends the thread."""
        self._leaving = True
        if self._thread.ident is not None:
            with contextlib.suppress(queue.Full):
                self._orders.put_nowait(None)
            self._thread.join(2 * CLOSE_S)
        else:
            self._mover.close()
        if self._thread.is_alive():
            _abandoned.extend([self._mover, self._storage])
        for sock in (self._woken, self._waker):
            if sock is not None:
                sock.close()

    def _tell(self, news: News) -> None:
        while True:
            try:
                self._news.put(news, timeout=0.1)
                break
            except queue.Full:
                if self._leaving:
                    return
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake already; closed: it has left
            if self._waker is not None:
                self._waker.send(b"\0")

    def _run(self) -> None:
        try:
            self._serve()
            self._leave()
        except Exception as error:
            log.exception("the KV mover failed")
            _abandoned.extend([self._mover, self._storage])
            self._tell(MoverFailed(f"{type(error).__name__}: {error}"))

    def _serve(self) -> None:
        idle = 0
        while not self._leaving:
            wait_s = POLL_S[(idle > 20) + (idle > 100)] if self._mover.moving else None
            try:
                order = self._orders.get(timeout=wait_s)
                if order is None:
                    return
                self._mover.take(order)
                idle = 0
            except queue.Empty:
                idle += 1
            if self._mover.turn():
                idle = 0

    def _leave(self) -> None:
        wait, looks = threading.Event(), int(CLOSE_S / POLL_S[-1])
        for _ in range(looks):
            if self._mover.close():
                return
            wait.wait(POLL_S[-1])
            self._mover.turn()
        log.warning("a transfer is still under way, its pool is left alone")
        _abandoned.extend([self._mover, self._storage])
