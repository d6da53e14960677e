"""Who is at the other end of a TCP connection on this host: the kernel knows which process has which port."""

from __future__ import annotations

import os
from pathlib import Path

CONNECTIONS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
"""gRPC dials IPv4 addresses from IPv6 sockets."""


class Dialler:
    """One process, asked by the port that a connection comes from. Looks once for each port."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._known: dict[int, bool] = {}

    def __call__(self, port: int) -> bool:
        if port not in self._known:
            self._known[port] = f"socket:[{_inode_of(port)}]" in _open_files(self._pid)
        return self._known[port]


def _inode_of(port: int) -> int:
    """Of the socket that dialled from this port; 0, which no file has, where it is closed."""
    for table in CONNECTIONS:
        for line in table.read_text().splitlines()[1:]:
            words = line.split()
            if _port(words[1]) == port and _port(words[2]):
                return int(words[9])
    return 0


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _open_files(pid: int) -> set[str]:
    folder = Path(f"/proc/{pid}/fd")
    found: set[str] = set()
    try:
        names = os.listdir(folder)
    except OSError:
        return found
    for name in names:
        try:
            found.add(os.readlink(folder / name))
        except OSError:  # closed meanwhile
            continue
    return found
