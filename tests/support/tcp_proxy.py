"""A TCP proxy that can hold or cut one direction: the network faults that signals cannot make."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Literal

Way = Literal["to_server", "to_client"]
Whom = Callable[[int, int], bool]
"""Picks connections by the port that they were dialled from and the proxy's own."""


def everybody(dialled_from: int, dialled: int) -> bool:
    return True


def nobody(dialled_from: int, dialled: int) -> bool:
    return False


class TcpProxy:
    """Listens on a port of its own and passes bytes on to `target`, while its gates are open.

    `held` and `broken` count what its faults have met: data at a closed gate, connections at a reset.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._host, self._port = host, int(port)
        self._gates: dict[Way, asyncio.Event] = {"to_server": asyncio.Event(), "to_client": asyncio.Event()}
        for gate in self._gates.values():
            gate.set()
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], tuple[int, int]] = {}
        self._refused: Whom = nobody
        self._held: dict[Way, Whom] = {"to_server": everybody, "to_client": everybody}
        self.held: dict[Way, int] = {"to_server": 0, "to_client": 0}
        self.broken = 0
        self.address = ""

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self.address

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.reset()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def hold(self, way: Way, whom: Whom = everybody) -> None:
        """From now on nothing passes that way, on any connection of theirs; the other way goes on."""
        self._held[way] = whom
        self._gates[way].clear()

    def release(self, way: Way) -> None:
        """What was held passes, in order."""
        self._gates[way].set()

    def reset(self, whom: Whom = everybody) -> None:
        """Breaks every connection of theirs: what was under way is lost."""
        found = [connection for connection, ends in self._connections.items() if whom(*ends)]
        self.broken += len(found)
        for connection in found:
            connection.cancel()

    def refuse(self, whom: Whom = everybody) -> None:
        """Breaks every connection of theirs, and each new one at once."""
        self._refused = whom
        self.reset(whom)

    def accept(self) -> None:
        self._refused = nobody

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        ends = (writer.get_extra_info("peername")[1], writer.get_extra_info("sockname")[1])
        if self._refused(*ends):
            writer.transport.abort()
            return
        self._connections[task] = ends
        up: asyncio.StreamWriter | None = None
        try:
            server_reader, up = await asyncio.open_connection(self._host, self._port)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, up, "to_server", ends))
                pumps.create_task(self._pump(server_reader, writer, "to_client", ends))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.pop(task, None)
            for end in (writer, up):
                if end is not None:
                    with contextlib.suppress(Exception):
                        end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way, ends: tuple[int, int]
    ) -> None:
        while data := await reader.read(1 << 16):
            if not self._gates[way].is_set() and self._held[way](*ends):
                self.held[way] += 1
                await self._gates[way].wait()
            writer.write(data)
            await writer.drain()
        # One end is done: so is the connection, as it is when a process dies.
        raise ConnectionResetError("closed")
