"""The proxy's faults may be for one process alone, which is told by the port that it dialled from."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

from tcp_dialler import Dialler
from tcp_proxy import TcpProxy

SAYS = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as one:
    one.settimeout(10)
    one.sendall(b"?")
    print(one.recv(1) == b"!", flush=True)
"""


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(1)
    writer.write(b"!")
    await reader.read()
    writer.close()


async def _asks(port: int) -> bool:
    """This process, over a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"?")
        async with asyncio.timeout(0.5):
            return await reader.read(1) == b"!"
    except (TimeoutError, ConnectionError):
        return False
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def _proxy() -> AsyncIterator[TcpProxy]:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    proxy = TcpProxy(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
        server.close()


async def _another_asks(port: int) -> bool:
    command = [sys.executable, "-c", SAYS, str(port)]
    return (
        await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    ).stdout == "True\n"


async def test_one_process_is_refused_and_others_are_not() -> None:
    async with _proxy() as proxy:
        port = int(proxy.address.rpartition(":")[2])
        proxy.refuse(Dialler(os.getpid()))
        assert not await _asks(port)
        assert await _another_asks(port)
        proxy.accept()
        assert await _asks(port)


async def test_one_process_is_held_up_and_others_are_not() -> None:
    async with _proxy() as proxy:
        port = int(proxy.address.rpartition(":")[2])
        proxy.hold("to_client", Dialler(os.getpid()))
        assert not await _asks(port) and proxy.held["to_client"] == 1
        assert await _another_asks(port)
        proxy.release("to_client")
        assert await _asks(port)


async def test_a_port_that_has_dialled_others_before_is_told_by_both_ends() -> None:
    """Ports come again: the kernel still lists the connections that are over, which belong to nobody."""
    async with _proxy() as proxy:
        mine = _used_before(times=8)
        mine.connect(("127.0.0.1", int(proxy.address.rpartition(":")[2])))
        with mine:
            assert Dialler(os.getpid())(mine.getsockname()[1], mine.getpeername()[1])


def _used_before(times: int) -> socket.socket:
    """A socket whose port has dialled, and closed first, so many others."""
    port = 0
    for _ in range(times):
        with socket.create_server(("127.0.0.1", 0)) as server, _bound(port) as before:
            port = before.getsockname()[1]
            before.connect(server.getsockname())
            accepted, _ = server.accept()
            before.close()
            accepted.close()
    return _bound(port)


def _bound(port: int) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(("127.0.0.1", port))
    return one
