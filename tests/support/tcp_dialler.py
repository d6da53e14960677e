"""Who is at the other end of a TCP connection on this host: the kernel knows which process has which port."""

from __future__ import annotations

import os
from pathlib import Path

CONNECTIONS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
"""gRPC dials IPv4 addresses from IPv6 sockets."""


class Dialler:
    """One process, asked by the ports at both ends of a connection. Looks once for each pair."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._known: dict[tuple[int, int], bool] = {}

    def __call__(self, dialled_from: int, dialled: int) -> bool:
        ends = (dialled_from, dialled)
        if ends not in self._known:
            self._known[ends] = f"socket:[{_inode_of(ends)}]" in _open_files(self._pid)
        return self._known[ends]


def _inode_of(ends: tuple[int, int]) -> int:
    """Of the socket that dialled; 0, which no file has, where it is closed.

    One port may have dialled several others, and the kernel still lists those that are over.
    """
    for table in CONNECTIONS:
        for line in table.read_text().splitlines()[1:]:
            words = line.split()
            if (_port(words[1]), _port(words[2])) == ends:
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
