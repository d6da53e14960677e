"""Requests that change workers with their caches, and prefixes that are read for them, both ways (docs/protocol.md,
"Moves" and "Prefixes")."""

from __future__ import annotations

import itertools

from hyperflexis.common.v1 import slo_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis.worker.v1 import worker_service_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.admission import fault_of, sequence_of
from hyperflexis_worker.core.arrivals import Arrivals, Arrived
from hyperflexis_worker.core.departures import Departures
from hyperflexis_worker.core.effects import AttachSequence, Effect, EndLease
from hyperflexis_worker.core.move_event import (
    ExportAsked,
    Exported,
    Linked,
    MoveEvent,
    PeerExported,
    PeerLinked,
    PeerPrefix,
    PeerReleased,
    PrefixAsked,
    Pulled,
    ReleaseAsked,
    Reserved,
)
from hyperflexis_worker.core.peer_links import PeerLinks
from hyperflexis_worker.core.prefix_leases import PrefixLeases
from hyperflexis_worker.core.prefix_pulls import PrefixPulls
from hyperflexis_worker.core.profile import WorkerProfile
from hyperflexis_worker.core.reporting import Reporter
from hyperflexis_worker.core.request import Request
from hyperflexis_worker.core.requests import Requests

Update = worker_session_pb2.RequestUpdate


class Moves:
    """Between the requests that are here and those two who bring and take them."""

    def __init__(self, profile: WorkerProfile, reporter: Reporter, requests: Requests, effects: list[Effect]) -> None:
        self._profile = profile
        self._reporter = reporter
        self._requests = requests
        self._effects = effects
        self.links = PeerLinks(effects)
        numbers = itertools.count(1)
        self.arrivals = Arrivals(effects, self.links, profile.block_tokens, numbers, self._failed, self._arrived)
        self.departures = Departures(effects, lambda r: requests.live(r.request_id, r.attempt) is r)
        hash_tokens = profile.capabilities.hash_block_tokens
        self.pulls = PrefixPulls(effects, self.links, hash_tokens, numbers, requests.add)
        self.prefixes = PrefixLeases(effects, profile.key.incarnation)
        requests.on_drop = self._dropped
        requests.pull = self.pulls.begin

    # --- as the target -----------------------------------------------------------------------------------

    def attach(self, attach: worker_session_pb2.AttachKv, draining: bool, arrival_us: int, now_us: int) -> None:
        """`arrival_us`: when the full request was received, on this worker's clock."""
        run = attach.run
        attempt = Attempt.of(run.attempt)
        if not self.links.layout:  # the engine named none: its caches do not move
            return self._not_attached(run.request_id, attempt, "caches_do_not_move")
        if draining or not self._requests.engine_up:
            return self._not_attached(run.request_id, attempt, "draining" if draining else "no_engine")
        if run.prompt_tokens + run.max_tokens > self._profile.capabilities.context_length:
            return self._not_attached(run.request_id, attempt, "over_context")
        if self._requests.tombstones.forbids(run.request_id, attempt, now_us):
            return self._not_attached(run.request_id, attempt, "ended_here_earlier")
        request = self._requests.admit(run.request_id, attempt, now_us)
        if request is None or request.run is not None or request.start is not None:
            return self._not_attached(run.request_id, attempt, "superseded")
        self._requests.whole(request)
        request.run, request.run_arrival_us = run, arrival_us
        request.phase = worker_session_pb2.REQUEST_PHASE_ATTACHING
        self.arrivals.begin(request, attach.ticket, now_us)

    def _failed(self, request: Request, reason: str, now_us: int) -> None:
        request.phase = worker_session_pb2.REQUEST_PHASE_AWAITING_START  # nothing of it is under way any more
        self._requests.drop(request)
        self._requests.tombstones.add(request.request_id, request.attempt, now_us)
        self._not_attached(request.request_id, request.attempt, reason)

    def _not_attached(self, request_id: str, attempt: Attempt, reason: str) -> None:
        decision = slo_pb2.Decision(kind="move", reason=reason)
        self._reporter.update(request_id, attempt, Update.KIND_NOT_ATTACHED, decision=decision, at_once=True)

    def _arrived(self, arrived: Arrived, now_us: int) -> None:
        request, start = arrived.request, arrived.export.start
        fault = fault_of(start, self._profile.capabilities)
        if fault or request.run is None:
            self._failed(request, "invalid_start", now_us)
            return
        start.attempt.CopyFrom(request.attempt.proto())
        number = self._requests.take_over(request, start, arrived.export.computed_tokens, now_us)
        sequence = sequence_of(request.run, start, self._profile.eos_token_ids, request.run_arrival_us)
        self._effects.append(AttachSequence(number, sequence, arrived.export.computed_tokens))
        decision = slo_pb2.Decision(kind="move", reason="attached", numbers=arrived.numbers)
        self._reporter.update(
            request.request_id, request.attempt, Update.KIND_ATTACHED, request.count, decision, at_once=True
        )

    # --- as the source -----------------------------------------------------------------------------------

    @property
    def _readable(self) -> bool:
        """An engine serves here whose caches move."""
        return self._requests.engine_up and bool(self.links.layout)

    def _ask(self, number: int, ask: worker_service_pb2.ExportKvRequest) -> None:
        request = self._requests.live(ask.request_id, Attempt.of(ask.attempt))
        self.departures.ask(number, request, ask, self._readable)

    def _exported(self, export: Exported, now_us: int) -> None:
        self.prefixes.exported(export)
        stopped = self.departures.exported(export, now_us)
        if stopped is not None:
            self._reporter.update(
                stopped.request_id, stopped.attempt, Update.KIND_KV_READY, stopped.count, at_once=True
            )

    # --- both --------------------------------------------------------------------------------------------

    def take(self, event: MoveEvent, now_us: int) -> None:
        match event:
            case ExportAsked(number, ask):
                self._ask(number, ask)
            case PrefixAsked(number, prefix):
                self.prefixes.ask(number, prefix, self._readable, now_us)
            case ReleaseAsked(number, lease_id):
                if not self.prefixes.release(number, lease_id, now_us):
                    self._effects.append(EndLease(lease_id, number))
            case Exported():
                self._exported(event, now_us)
            case Reserved(request_id, attempt, ok, cached):
                self.arrivals.reserved(request_id, attempt, ok, now_us)
                self.pulls.reserved(request_id, attempt, ok, cached, now_us)
            case Linked(engine, status):
                self.links.linked(engine, status, now_us)
            case Pulled(number, error):
                self.arrivals.pulled(number, error, now_us)
                self.pulls.pulled(number, error, now_us)
            case PeerExported(number, response, error):
                self.arrivals.exported(number, response, error, now_us)
            case PeerPrefix(number, leased, error):
                self.pulls.exported(number, leased, error, now_us)
            case PeerLinked(number, told, error):
                self.links.told(number, told, error, now_us)
            case PeerReleased(number, held, error):
                self.arrivals.released(number, held, error, now_us)
                self.pulls.released(number, held, error, now_us)

    def engine_lost(self, now_us: int) -> None:
        """Before the requests hear of it: what was on its way here is no loss, it is still at its source."""
        self.arrivals.fail_all("engine_lost", now_us)
        self.pulls.abandon_all()
        self.prefixes.engine_lost()
        self.links.engine_lost()
        for request in self.departures.engine_lost():
            self._requests.lose(request, "its cache died with the engine", now_us)

    def tick(self, now_us: int) -> None:
        self.arrivals.tick(now_us)
        self.pulls.tick(now_us)
        self.prefixes.tick(now_us)
        for request in self.departures.overdue(now_us):
            self._requests.lose(request, "nobody fetched it", now_us)

    def _dropped(self, request: Request) -> None:
        if request.phase == worker_session_pb2.REQUEST_PHASE_ATTACHING:
            self.arrivals.abandon(request.request_id)
        else:
            self.pulls.abandon(request.request_id)
            self.departures.forget(request)
