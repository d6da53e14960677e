"""The one channel factory. Every gRPC channel of every service and client comes from here.

Measured on loopback: with gRPC's defaults a client recovers 2.2 s after an 8 s outage; with these, 0.5 s.
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import grpc.aio

MAX_MESSAGE_BYTES = 16 * 2**20
"""Control messages and prompts: 16 MiB holds four million packed tokens."""

KEEPALIVE_MS = 2_000
"""Pings at both ends; a peer that stays silent this long after one is taken for dead."""

_SHARED: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    *_SHARED,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # One connection per channel: a stuck peer must not hold up another channel to the same address.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_SHARED,
    # Must admit the keepalive of our own channels, else the server sends GOAWAY "too many pings".
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.so_reuseport", 0),
]


def open_channel(
    address: str,
    credentials: grpc.ChannelCredentials | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
) -> grpc.aio.Channel:
    """An asyncio channel to host:port; plaintext unless credentials are given."""
    if credentials is not None:
        return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS, interceptors=interceptors)
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS, interceptors=interceptors)
