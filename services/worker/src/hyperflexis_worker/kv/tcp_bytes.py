"""What has come over this process's TCP connections: tells a transfer over TCP from one over anything else."""

from __future__ import annotations

import os
import socket
import struct

_RECEIVED = struct.Struct("@Q")
_RECEIVED_AT = 128
"""Offset of tcpi_bytes_received in Linux's struct tcp_info."""


def received() -> dict[str, int]:
    """Bytes that each connection of this process has received, by its inode."""
    counts: dict[str, int] = {}
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return counts
    for descriptor in descriptors:
        try:
            inode = os.readlink(f"/proc/self/fd/{descriptor}")
            if not inode.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as one:
                if one.family not in (socket.AF_INET, socket.AF_INET6) or one.type != socket.SOCK_STREAM:
                    continue
                info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED_AT + _RECEIVED.size)
        except OSError:  # closed meanwhile, or no connection
            continue
        if len(info) >= _RECEIVED_AT + _RECEIVED.size:
            counts[inode] = _RECEIVED.unpack_from(info, _RECEIVED_AT)[0]
    return counts


def most_received_since(before: dict[str, int]) -> int:
    """Bytes that have come over the busiest connection since `received` said that."""
    return max((count - before.get(inode, 0) for inode, count in received().items()), default=0)
