"""The shell's end of the engine: start it, send commands, read events, notice its death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator

import structlog

from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.engine import frames
from hyperflexis_worker.engine.__main__ import SETTINGS_VARIABLE, serve

log = structlog.get_logger(__name__)


class EngineHandle:
    """One life of the engine. Its death ends `events()`; a new life is a new handle."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int:
        """Of the engine process; 0 in thread mode."""
        return self._process.pid if self._process else 0

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        if self._settings.engine_mode == "thread":
            self._thread = threading.Thread(target=self._serve_in_thread, args=(theirs,), name="engine", daemon=True)
            self._thread.start()
        else:
            environment = {**os.environ, SETTINGS_VARIABLE: self._settings.model_dump_json()}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hyperflexis_worker.engine", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
            )
            theirs.close()
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 20)

    def _serve_in_thread(self, sock: socket.socket) -> None:
        with contextlib.suppress(Exception):  # already logged, and the shell has been told
            serve(sock, self._settings)

    def send(self, message: frames.ToEngine) -> None:
        """Queues one command; dropped where the engine is gone (its end is seen by events())."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frames.encode(message))

    async def events(self) -> AsyncGenerator[frames.FromEngine, None]:
        """What the engine says, until it ends."""
        reader = self._reader
        assert reader is not None, "start() comes first"
        try:
            while True:
                (length,) = frames.HEADER.unpack(await reader.readexactly(frames.HEADER.size))
                yield frames.decode_from_engine(await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionResetError, BrokenPipeError):
            return

    def kill(self) -> None:
        """At once. Nothing can kill a thread: it is left alone without its socket, and leaves when it next looks."""
        if self._process is not None:
            self._process.kill()
        elif self._writer is not None:
            self._writer.transport.abort()

    async def stop(self, grace_s: float = 2.0) -> None:
        """Asks the engine to leave, then makes it."""
        self.send(frames.Stop())
        if self._writer is not None:
            self._writer.close()  # once what is queued has gone, Stop at its end
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._writer.wait_closed()
            self._writer.transport.abort()  # an engine that hangs reads nothing
        if self._process is not None:
            try:
                await asyncio.to_thread(self._process.wait, grace_s)
            except subprocess.TimeoutExpired:
                log.warning("the engine does not leave, killing it", pid=self._process.pid)
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, grace_s)
