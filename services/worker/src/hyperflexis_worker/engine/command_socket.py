"""The engine's end of the socket to the shell."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Protocol

from hyperflexis_worker.engine import frames


class SupportsFileno(Protocol):
    def fileno(self) -> int: ...


class CommandSocket:
    """Whole frames in, whole frames out, blocking only when idle."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setblocking(True)
        self._buffer = bytearray()

    def receive(self, wait_s: float, waker: SupportsFileno | None = None) -> Iterator[frames.ToEngine]:
        """Commands that are there; waits up to `wait_s` for the first, or until `waker` can be read. Raises EOFError
        at the shell's end."""
        both = [self._sock] if waker is None else [self._sock, waker]
        while self._sock in select.select(both, [], [], wait_s)[0]:
            wait_s = 0.0
            data = self._sock.recv(1 << 20)
            if not data:
                raise EOFError("the shell closed the socket")
            self._buffer += data
        header = frames.HEADER.size
        while len(self._buffer) >= header:
            (length,) = frames.HEADER.unpack_from(self._buffer)
            if length > frames.MAX_FRAME_BYTES:
                raise EOFError(f"frame of {length} bytes")
            if len(self._buffer) < header + length:
                return
            body = bytes(self._buffer[header : header + length])
            del self._buffer[: header + length]
            yield frames.decode_to_engine(body)

    def send(self, message: frames.FromEngine) -> None:
        self._sock.sendall(frames.encode(message))
