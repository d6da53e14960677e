"""Prometheus metrics of a process on their own HTTP port."""

from __future__ import annotations

import structlog
from prometheus_client import start_http_server

log = structlog.get_logger(__name__)

LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


def serve_metrics(port: int) -> None:
    """Serves /metrics on `port`; 0 = off. A port in use is a warning: metrics never stop a service."""
    if port == 0:
        return
    try:
        start_http_server(port)
    except OSError as error:
        log.warning("metrics port not available", port=port, error=str(error))
