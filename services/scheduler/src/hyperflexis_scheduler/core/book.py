"""Every request the leader remembers: the live ones, and for a while the ended ones."""

from __future__ import annotations

from collections.abc import Iterator

from hyperflexis_scheduler.core.request import Phase, RequestState


class Book:
    """Requests by id. Ended ones leave after their retention, or earlier when there are too many."""

    def __init__(self, retention_us: int, retained_limit: int) -> None:
        self._retention_us = retention_us
        self._retained_limit = retained_limit
        self._requests: dict[str, RequestState] = {}
        # Ordered by expiry, because every retention is equally long.
        self._retained: dict[str, int] = {}
        self.active = 0

    def __len__(self) -> int:
        return len(self._requests)

    def get(self, request_id: str) -> RequestState | None:
        return self._requests.get(request_id)

    def add(self, request_id: str, now_us: int) -> RequestState:
        """A new request; it counts as ended until it is moved to a live phase."""
        state = self._requests[request_id] = RequestState(request_id)
        self._retain(request_id, now_us)
        return state

    def move(self, state: RequestState, phase: Phase, now_us: int) -> None:
        """The one place where a phase changes."""
        was, state.phase = state.phase.active, phase
        self.active += phase.active - was
        if phase.active:
            self._retained.pop(state.request_id, None)
        else:
            self._retain(state.request_id, now_us)
            self._trim()

    def forget(self, state: RequestState) -> None:
        """An ended request, at once."""
        assert not state.phase.active
        self._retained.pop(state.request_id, None)
        del self._requests[state.request_id]

    def expire(self, now_us: int) -> None:
        for request_id in self._expired(now_us):
            del self._retained[request_id]
            del self._requests[request_id]

    def _retain(self, request_id: str, now_us: int) -> None:
        self._retained.pop(request_id, None)
        self._retained[request_id] = now_us + self._retention_us

    def _trim(self) -> None:
        if len(self._retained) > self._retained_limit:
            oldest = next(iter(self._retained))
            del self._retained[oldest]
            del self._requests[oldest]

    def _expired(self, now_us: int) -> list[str]:
        def due() -> Iterator[str]:
            for request_id, until_us in self._retained.items():
                if until_us > now_us:
                    return
                yield request_id

        return list(due())
