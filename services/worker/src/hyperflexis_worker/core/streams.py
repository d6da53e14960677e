"""Who gets which request's tokens: the feed that owns it, or nobody and then not for long."""

from __future__ import annotations

from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.effects import Effect, ToFeed
from hyperflexis_worker.core.feed import Feed
from hyperflexis_worker.core.request import Request

ORPHAN_GRACE_US = 5_000_000
"""A request whose feed is gone runs on at least this long."""

Gone = token_feed_pb2.Gone


class Streams:
    """The newest Start or Subscribe of a request owns its stream."""

    def __init__(self, feeds: dict[int, Feed], effects: list[Effect]) -> None:
        self._feeds = feeds
        self._effects = effects
        self._orphans: dict[str, Request] = {}

    def own(self, request: Request, feed: int, next_index: int) -> None:
        """This feed gets the request's tokens from next_index on, the past ones at once."""
        if request.owner is not None and request.owner in self._feeds:
            # Also where the feed stays the same: whoever asks again may have lost the slot's meaning.
            self._feeds[request.owner].forget(request)
        request.owner = feed
        self._orphans.pop(request.request_id, None)
        self._feeds[feed].add(request, next_index)
        if request.finished is not None:
            self._feeds[feed].add_finished(request)

    def subscribe(self, feed: int, subscribe: token_feed_pb2.Subscribe, request: Request | None) -> None:
        """`request`: the one of that id, where it is here."""
        attempt = Attempt.of(subscribe.attempt)
        if request is None or request.attempt < attempt or request.start is None:
            self.gone(feed, subscribe.request_id, attempt, Gone.REASON_UNKNOWN, "not here")
        elif request.attempt > attempt:
            self.gone(feed, subscribe.request_id, attempt, Gone.REASON_SUPERSEDED, "a later attempt is here")
        elif subscribe.next_index > request.count:
            message = f"asked for index {subscribe.next_index} of {request.count} tokens"
            self.gone(feed, subscribe.request_id, attempt, Gone.REASON_INVALID, message)
        else:
            self.own(request, feed, subscribe.next_index)

    def orphan(self, request: Request, now_us: int) -> None:
        """Its owner is gone; one that still runs does so for its grace."""
        request.owner = None
        request.orphaned_us = now_us
        if request.finished is None:
            self._orphans[request.request_id] = request

    def expired(self, now_us: int) -> list[Request]:
        """Orphans that nobody has asked for within their grace."""
        return [
            request
            for request in self._orphans.values()
            if now_us - request.orphaned_us > max(request.grace_us, ORPHAN_GRACE_US)
        ]

    def tokens(self, request: Request, start_index: int) -> None:
        """New ones, from start_index on."""
        if request.owner is not None:
            self._feeds[request.owner].add(request, start_index)

    def finished(self, request: Request) -> None:
        """Nothing follows; what is kept for replay is no orphan."""
        self._orphans.pop(request.request_id, None)
        if request.owner is not None:
            self._feeds[request.owner].add_finished(request)

    def forget(self, request: Request, reason: Gone.Reason.ValueType | None, message: str) -> None:
        """The request is dropped; with a reason, the feed that waits for it is told."""
        self._orphans.pop(request.request_id, None)
        if request.owner is not None and request.owner in self._feeds:
            self._feeds[request.owner].forget(request)
            if reason is not None and request.finished is None:
                self.gone(request.owner, request.request_id, request.attempt, reason, message)

    def gone(self, feed: int, request_id: str, attempt: Attempt, reason: Gone.Reason.ValueType, message: str) -> None:
        gone = Gone(request_id=request_id, attempt=attempt.proto(), reason=reason, message=message)
        self._effects.append(ToFeed(feed, token_feed_pb2.TokenFeedResponse(gone=gone)))
