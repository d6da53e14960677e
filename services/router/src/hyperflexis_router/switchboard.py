"""Where the core meets the world: carries its effects out, and holds the requests they are about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import structlog

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.clock import Clock
from hyperflexis_router.admission import InFlight
from hyperflexis_router.core.effects import (
    CloseFeed,
    Committed,
    DropScheduler,
    Effect,
    Ended,
    Noticed,
    OpenFeed,
    ToFeed,
    ToScheduler,
)
from hyperflexis_router.core.router import RouterCore
from hyperflexis_router.faults import Faults
from hyperflexis_router.live import Attached, LiveRequest
from hyperflexis_router.metrics import IN_FLIGHT, count_finished

log = structlog.get_logger(__name__)

KEPT_FINISHED = 1_024
KEPT_FINISHED_US = 120_000_000
"""Finished requests stay this long, so that a client that lost the last delta can resume without Redis."""


class Lines(Protocol):
    """The connections, as the switchboard uses them."""

    def to_scheduler(self, message: router_session_pb2.RouterSessionRequest) -> None: ...
    def drop_scheduler(self, reason: str) -> None: ...
    def to_feed(self, worker: WorkerKey, message: token_feed_pb2.TokenFeedRequest) -> None: ...
    def open_feed(self, worker: WorkerKey, address: str) -> None: ...
    def close_feed(self, worker: WorkerKey) -> None: ...


class Switchboard:
    """All of it on one event loop, nothing of it waits."""

    def __init__(self, core: RouterCore, clock: Clock, in_flight: InFlight, faults: Faults) -> None:
        self.core = core
        self.clock = clock
        self.lines: Lines | None = None
        self.on_dirty: Callable[[LiveRequest], None] = lambda live: None
        """Something of a request is not in Redis yet."""
        self._frozen = False
        self._in_flight = in_flight
        self._faults = faults
        self._live: dict[str, LiveRequest] = {}
        self._finished: dict[str, LiveRequest] = {}
        self._by_key: dict[tuple[str, str], str] = {}

    # --- requests ---

    def find(self, request_id: str) -> LiveRequest | None:
        """Running here, or finished a moment ago."""
        return self._live.get(request_id) or self._finished.get(request_id)

    def find_by_key(self, tenant: str, idempotency_key: str) -> LiveRequest | None:
        request_id = self._by_key.get((tenant, idempotency_key))
        return self.find(request_id) if request_id is not None else None

    def live(self) -> Iterable[LiveRequest]:
        return self._live.values()

    def newest(self) -> Iterator[LiveRequest]:
        return reversed(self._live.values())

    def add(self, live: LiveRequest) -> None:
        """Takes a request, whose in-flight count goes over to it. Not submitted yet."""
        self._live[live.request_id] = live
        if live.origin.idempotency_key:
            self._by_key[(live.new.tenant, live.origin.idempotency_key)] = live.request_id
        IN_FLIGHT.set(len(self._live))

    def submit(self, live: LiveRequest) -> None:
        if live.submitted or live.finished is not None or live.released:
            return
        live.submitted = True
        now_us = self.clock.now_us()
        if live.ends is not None:
            # Taken over after its stop string, before the record of its end.
            self._end(live, Ended(live.request_id, live.ends))
        else:
            self.apply(self.core.submit(live.new, now_us))
        self._faults.passed("submitted")

    def extend(self, live: LiveRequest, packed: bytes) -> None:
        """The client has tokens beyond those that are here."""
        self.submit(live)
        self.apply(self.core.extend(live.request_id, packed, self.clock.now_us()))

    def cancel(self, live: LiveRequest) -> None:
        if live.submitted:
            self.apply(self.core.cancel(live.request_id, self.clock.now_us()))
        elif live.finished is None:
            self._end(live, Ended(live.request_id, sampling_pb2.FINISH_REASON_CANCELLED))

    def stream_lost(self, live: LiveRequest, attached: Attached, expired: bool = False) -> None:
        """A client's stream is gone before its end: by its own will, the network, or its deadline (`expired`), after
        which it wants nothing more."""
        if live.client is not attached:
            return
        live.client = None
        live.delivered = attached.stream.done
        if live.finished is not None or live.released:
            return
        if live.new.detach_grace_us > 0 and not expired:
            live.detached_until_us = self.clock.now_us() + live.new.detach_grace_us
            self.submit(live)
        else:
            self.cancel(live)

    def release(self, live: LiveRequest) -> None:
        """Another router has it: forget it without ending it, and without a word to its worker."""
        if self.find(live.request_id) is not live:
            return
        self.core.release(live.request_id, self.clock.now_us())
        live.released = True
        self._forget_key(live)
        self._finished.pop(live.request_id, None)
        if self._live.pop(live.request_id, None) is not None:
            self._in_flight.leave(live.new.tenant)
            IN_FLIGHT.set(len(self._live))
        live.wake()

    def cancelled_elsewhere(self, live: LiveRequest, message: str) -> None:
        """Another router took it in order to end it: whoever reads here hears of the end."""
        self.core.release(live.request_id, self.clock.now_us())
        if self._live.get(live.request_id) is live:
            live.closed = True
            self._end(live, Ended(live.request_id, sampling_pb2.FINISH_REASON_CANCELLED, message))
        self.release(live)

    def record_closed(self, live: LiveRequest) -> None:
        """The end of a request is in Redis, or need not be: its worker may forget it."""
        if self.find(live.request_id) not in (live, None):
            return
        self.apply(self.core.closed(live.request_id, self.clock.now_us()))
        self._faults.passed("closed")

    # --- time and messages ---

    def tick(self) -> None:
        now_us = self.clock.now_us()
        self.apply(self.core.tick(now_us))
        for live in list(self._live.values()):
            if live.detached_until_us is not None and now_us >= live.detached_until_us:
                live.detached_until_us = None
                self.cancel(live)
        for live in list(self._finished.values()):
            if now_us - live.finished_at_us < KEPT_FINISHED_US and len(self._finished) <= KEPT_FINISHED:
                break
            del self._finished[live.request_id]
            self._forget_key(live)

    def freeze(self) -> None:
        """Nothing happens any more: what clients have been sent can be written down, and nothing gets ahead of it."""
        self._frozen = True

    def apply(self, effects: list[Effect]) -> None:
        """Carries effects out, in order."""
        if self._frozen:
            return
        lines = self.lines
        for effect in effects:
            if isinstance(effect, Committed):
                self._commit(effect)
            elif isinstance(effect, Ended):
                live = self._live.get(effect.request_id)
                if live is not None:
                    self._end(live, effect)
            elif isinstance(effect, Noticed):
                self.notice(effect.request_id, effect.notice)
            elif lines is None:
                continue
            elif isinstance(effect, ToScheduler):
                lines.to_scheduler(effect.message)
            elif isinstance(effect, ToFeed):
                lines.to_feed(effect.worker, effect.message)
                if effect.message.HasField("start"):
                    self._faults.passed("started")
            elif isinstance(effect, OpenFeed):
                lines.open_feed(effect.worker, effect.address)
            elif isinstance(effect, CloseFeed):
                lines.close_feed(effect.worker)
            elif isinstance(effect, DropScheduler):
                log.warning("dropping the scheduler", reason=effect.reason)
                lines.drop_scheduler(effect.reason)

    def notice(self, request_id: str, notice: inference_service_pb2.Notice) -> None:
        live = self._live.get(request_id)
        if live is not None:
            live.notice(notice)

    # --- inside ---

    def _commit(self, effect: Committed) -> None:
        live = self._live.get(effect.request_id)
        if live is None:
            return
        live.commit(effect.packed, effect.logprobs, self.clock.now_us())
        self.on_dirty(live)
        if effect.start_index == 0:
            self._faults.passed("first_token")
        if live.ends is not None:
            self.apply(self.core.finish(live.request_id, live.ends, self.clock.now_us()))

    def _end(self, live: LiveRequest, ended: Ended) -> None:
        if live.finished is not None:
            return
        live.end(ended, self.clock.now_us())
        assert live.finished is not None
        del self._live[live.request_id]
        self._finished[live.request_id] = live
        self._in_flight.leave(live.new.tenant)
        IN_FLIGHT.set(len(self._live))
        count_finished(live.new.slo.tier, live.finished)
        self.on_dirty(live)
        self._faults.passed("finished")

    def _forget_key(self, live: LiveRequest) -> None:
        key = (live.new.tenant, live.origin.idempotency_key)
        if self._by_key.get(key) == live.request_id:
            del self._by_key[key]
