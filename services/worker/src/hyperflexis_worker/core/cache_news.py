"""What the prefix cache gained and lost, collected for reports; a new leader is told everything that is there."""

from __future__ import annotations

from collections.abc import Iterable

from hyperflexis.scheduler.v1 import worker_session_pb2

PER_REPORT = 4_096
"""Hashes told in one report at most; the rest goes with the next ones."""


class CacheNews:
    def __init__(self) -> None:
        self._present: dict[bytes, None] = {}
        self._news: dict[bytes, bool] = {}
        """By hash: it was stored, or removed; what came last counts."""
        self._reset = True

    def __bool__(self) -> bool:
        """Something is to be told."""
        return bool(self._news) or self._reset

    def changed(self, changes: Iterable[tuple[bool, bytes]]) -> None:
        """(stored, hash), oldest first."""
        for stored, digest in changes:
            if stored:
                self._present[digest] = None
            else:
                self._present.pop(digest, None)
            self._news[digest] = stored

    def begin(self) -> None:
        """A leader that knows nothing."""
        self._news = dict.fromkeys(self._present, True)
        self._reset = True

    def lost(self) -> None:
        """Nothing is there any more, or not known to be."""
        self._present.clear()
        self.begin()

    def take(self) -> worker_session_pb2.CacheNews:
        """The oldest that was not told."""
        told = dict(zip(list(self._news)[:PER_REPORT], list(self._news.values())[:PER_REPORT], strict=True))
        for digest in told:
            del self._news[digest]
        reset, self._reset = self._reset, False
        return worker_session_pb2.CacheNews(
            reset=reset,
            stored=b"".join(digest for digest, stored in told.items() if stored),
            removed=b"".join(digest for digest, stored in told.items() if not stored),
        )
