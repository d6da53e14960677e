"""Ports that nobody listens on at present."""

from __future__ import annotations

import socket


def free_ports(count: int) -> list[int]:
    """Different ones; all are held until all are chosen."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
