"""Requests that wait for their other half: a Run without its Start, or a Start without its Run."""

from __future__ import annotations

from hyperflexis_worker.core.request import Request

HALF_LIMIT_US = 1_000_000
"""Whoever is still a half after this is dropped."""


class Halves:
    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}

    def __contains__(self, request: Request) -> bool:
        return self._requests.get(request.request_id) is request

    def add(self, request: Request) -> None:
        self._requests[request.request_id] = request

    def forget(self, request_id: str) -> None:
        """It has both, or nobody waits for it any more."""
        self._requests.pop(request_id, None)

    def expired(self, now_us: int) -> list[Request]:
        return [r for r in self._requests.values() if now_us - r.first_seen_us > HALF_LIMIT_US]

    @property
    def prompt_tokens(self) -> int:
        """Work to come: of those whose Run is here."""
        return sum(request.prompt_tokens for request in self._requests.values() if request.run is not None)
