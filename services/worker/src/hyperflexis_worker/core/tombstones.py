"""Requests that must not start here any more, remembered for a minute."""

from __future__ import annotations

from collections import OrderedDict

from hyperflexis_common.attempt import Attempt

EVERY_ATTEMPT = Attempt(2**64 - 1, 2**64 - 1)


class Tombstones:
    """The highest cancelled attempt of each request, for `ttl_us`, at most `limit` of them."""

    def __init__(self, ttl_us: int = 60_000_000, limit: int = 100_000) -> None:
        self._ttl_us = ttl_us
        self._limit = limit
        self._entries: OrderedDict[str, tuple[Attempt, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, request_id: str, attempt: Attempt, now_us: int) -> None:
        older = self._entries.pop(request_id, None)
        highest = max(attempt, older[0]) if older else attempt
        self._entries[request_id] = (highest, now_us + self._ttl_us)
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)

    def forbids(self, request_id: str, attempt: Attempt, now_us: int) -> bool:
        entry = self._entries.get(request_id)
        return entry is not None and attempt <= entry[0] and now_us < entry[1]

    def expire(self, now_us: int) -> None:
        while self._entries:
            request_id, (_, expires_us) = next(iter(self._entries.items()))
            if expires_us > now_us:
                return
            del self._entries[request_id]
