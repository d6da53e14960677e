"""Finished requests, kept for routers that have not read all their tokens."""

from __future__ import annotations

from hyperflexis_worker.core.request import Request

RETAIN_US = 120_000_000
"""Tokens of a finished request are kept this long for replay, unless Closed comes first."""
RETAIN_LIMIT = 20_000
"""Finished requests kept at most; beyond it the oldest go."""


class Retained:
    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}
        """Oldest first."""

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        self._requests[request.request_id] = request

    def forget(self, request_id: str) -> None:
        self._requests.pop(request_id, None)

    def expired(self, now_us: int) -> list[Request]:
        """Those kept for too long, or too many."""
        surplus = len(self._requests) - RETAIN_LIMIT
        found = []
        for number, request in enumerate(self._requests.values()):
            if number >= surplus and now_us - request.finished_us <= RETAIN_US:
                break
            found.append(request)
        return found
