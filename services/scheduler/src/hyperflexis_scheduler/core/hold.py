"""Requests that have no place to go, in the order in which they will get one."""

from __future__ import annotations

from bisect import bisect_left, insort


class HoldQueue:
    """Bounded; ordered per model by (key, arrival here). Every operation is exact: nothing lingers."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        # Descending, so that the next ones are removed cheaply, from the end.
        self._by_model: dict[str, list[tuple[int, int, str]]] = {}
        # request_id -> (model, entry, held since); in order of arrival, which is the order of expiry.
        self._entries: dict[str, tuple[str, tuple[int, int, str], int]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    @property
    def full(self) -> bool:
        return len(self._entries) >= self._limit

    def add(self, request_id: str, model: str, key: int, now_us: int) -> None:
        """Raises OverflowError when full."""
        if self.full:
            raise OverflowError("hold queue is full")
        self._count += 1
        entry = (-key, -self._count, request_id)
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

    def all(self, model: str) -> list[str]:
        """The requests of a model, in order; they stay until removed."""
        return [request_id for _, _, request_id in reversed(self._by_model.get(model, ()))]

    def expired(self, limit_us: int, now_us: int) -> list[str]:
        """Those held for `limit_us` or longer; they stay until removed."""
        result = []
        for request_id, (_, _, since_us) in self._entries.items():
            if now_us - since_us < limit_us:
                break
            result.append(request_id)
        return result
