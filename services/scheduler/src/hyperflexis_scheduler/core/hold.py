"""Requests that have no place to go, in the order in which they will get one."""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import islice

_Entry = tuple[int, int, str, int]
"""(-key, -arrival, request id, tokens)"""


class HoldQueue:
    """Bounded; ordered per model by (key, arrival here). Every operation is exact: nothing lingers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        # Descending, so that the next ones are removed cheaply, from the end.
        self._by_model: dict[str, list[_Entry]] = {}
        # request_id -> (model, entry, held since); in order of arrival, which is the order of expiry.
        self._entries: dict[str, tuple[str, _Entry, int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    @property
    def full(self) -> bool:
        return len(self._entries) >= self._limit

    def add(self, request_id: str, model: str, tokens: int, key: int, now_us: int) -> None:
        """`tokens`: the context that it needs. Raises OverflowError when full."""
        if self.full:
            raise OverflowError("hold queue is full")
        self._count += 1
        entry = (-key, -self._count, request_id, tokens)
        insort(self._by_model.setdefault(model, []), entry)
        self._entries[request_id] = (model, entry, now_us)

    def remove(self, request_id: str) -> None:
        """Nothing happens where it is not held."""
        if request_id not in self._entries:
            return
        model, entry, _ = self._entries.pop(request_id)
        queue = self._by_model[model]
        del queue[bisect_left(queue, entry)]
        if not queue:
            del self._by_model[model]

    def first(self, model: str, limit: int, room: int, most: int) -> list[str]:
        """The next requests of a model, in order, that fit into `room` tokens or need more than `most`, which no worker
        has; they stay until removed."""
        queue = reversed(self._by_model.get(model, ()))
        return list(islice((name for _, _, name, tokens in queue if tokens <= room or tokens > most), limit))

    def expired(self, limit_us: int, now_us: int) -> list[str]:
        """Those held for `limit_us` or longer; they stay until removed."""
        result = []
        for request_id, (_, _, since_us) in self._entries.items():
            if now_us - since_us < limit_us:
                break
            result.append(request_id)
        return result
