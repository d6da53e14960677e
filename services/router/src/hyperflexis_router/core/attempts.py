"""The attempts of one request: which of them owns which index of its output."""

from __future__ import annotations

from typing import NamedTuple

from hyperflexis_common.attempt import NO_ATTEMPT, Attempt
from hyperflexis_router.core.feed import Feed


class Delivering(NamedTuple):
    """An attempt whose tokens count, and where they come from."""

    attempt: Attempt
    feed: Feed


class Span(NamedTuple):
    """Indices [begin, end) of an output; to its end where that is None."""

    begin: int
    end: int | None


ALL = Span(0, None)


class Attempts:
    """The current one, and the one before it while that still owns what lies below the current one's first index."""

    def __init__(self, request_id: str) -> None:
        self.current = NO_ATTEMPT
        """The latest, dead or alive."""
        self.feed: Feed | None = None
        """Where the current one delivers; None while there is none, or it is dead."""
        self.older: Delivering | None = None
        self.count = 0
        self._owned_from = 0
        self._request_id = request_id

    def alive(self, attempt: Attempt) -> bool:
        """Is it the current one, and can it deliver?"""
        return attempt == self.current and self.feed is not None

    def owner(self) -> Delivering | None:
        """Whoever is to deliver the next token."""
        return self.older or (Delivering(self.current, self.feed) if self.feed is not None else None)

    def owned_by(self, attempt: Attempt) -> Span | None:
        """What an attempt may deliver; None where its tokens count no more."""
        if self.alive(attempt):
            return ALL if self.older is None else Span(self._owned_from, None)
        if self.older is not None and attempt == self.older.attempt:
            return Span(0, self._owned_from)
        return None

    def replace(self, attempt: Attempt, feed: Feed, base_index: int, next_index: int) -> bool:
        """A later one is current. True where the one before lives and still owes what lies below `base_index`."""
        self.drop_older(next_index)
        owes = self.feed is not None and base_index > next_index
        if self.feed is not None:
            if owes:
                self.older = Delivering(self.current, self.feed)
            else:
                self.feed.leave(self._request_id)
        self._owned_from = base_index if owes else next_index
        self.current, self.feed = attempt, feed
        self.count += 1
        return owes

    def reached(self, next_index: int) -> None:
        """The output has come so far: an older one that has delivered its part is done."""
        if self.older is not None and next_index >= self._owned_from:
            self.drop_older(next_index)

    def drop_older(self, next_index: int) -> bool:
        """It is done or gone: the current one owns from next_index on. True where it did not until now."""
        older, self.older = self.older, None
        if older is not None and older.feed is not self.feed:
            older.feed.leave(self._request_id)
        inherits = next_index < self._owned_from
        self._owned_from = min(self._owned_from, next_index)
        return inherits

    def leave(self) -> list[Feed]:
        """All are dead. Returns the feeds whose workers may hold something of this request."""
        feeds = [feed for feed in (self.older.feed if self.older else None, self.feed) if feed is not None]
        self.older = self.feed = None
        for feed in feeds:
            feed.leave(self._request_id)
        return feeds
