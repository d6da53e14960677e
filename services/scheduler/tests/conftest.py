"""A stage for the core: fake routers and workers whose sessions are numbers and whose clock is an integer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from hyperflexis.common.v1 import capability_pb2, identity_pb2, slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as ss
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.attempt import Attempt, WorkerKey
from hyperflexis_scheduler.core.dispatch_policy import EarliestFirstToken
from hyperflexis_scheduler.core.effects import CloseSession, Effect, HigherEpoch, Remember, ToRouter, ToWorker
from hyperflexis_scheduler.core.memory import Memory, WorkerRecord
from hyperflexis_scheduler.core.rules import Rules
from hyperflexis_scheduler.core.scheduler import SchedulerCore

MS = 1_000
READY = capability_pb2.READINESS_READY


class Peer:
    """One session: what was sent to it, by kind, and why it was closed."""

    def __init__(self, session: int) -> None:
        self.session = session
        self.got: list[Any] = []
        self.closed: str | None = None

    def all(self, kind: str) -> list[Any]:
        return [getattr(message, kind) for message in self.got if message.WhichOneof("message") == kind]

    def last(self, kind: str) -> Any:
        found = self.all(kind)
        assert found, f"no {kind} in {[message.WhichOneof('message') for message in self.got]}"
        return found[-1]

    def clear(self) -> None:
        self.got.clear()


class FakeWorker(Peer):
    def __init__(self, stage: Stage, session: int, key: WorkerKey) -> None:
        super().__init__(session)
        self.stage = stage
        self.key = key
        self._report_seq = 0

    def snapshot(self, *requests: ws.RequestStatus, readiness: int = READY, **load: int) -> FakeWorker:
        message = ws.Snapshot(requests=requests, load=ws.WorkerLoad(**load), readiness=readiness)
        self.stage.act(self.stage.core.worker_message, self.session, ws.WorkerSessionRequest(snapshot=message))
        return self

    def report(self, *updates: ws.RequestUpdate, load: dict[str, int] | None = None, **fields: Any) -> None:
        self._report_seq += 1
        fields.setdefault("applied_seq", max((message.seq for message in self.got), default=0))
        report = ws.Report(report_seq=self._report_seq, updates=updates, load=ws.WorkerLoad(**(load or {})), **fields)
        self.stage.act(self.stage.core.worker_message, self.session, ws.WorkerSessionRequest(report=report))

    def update(self, kind: str, run: Any, load: dict[str, int] | None = None, **fields: Any) -> None:
        """Reports one update about the attempt of a Run (or of anything with request_id and attempt)."""
        number = ws.RequestUpdate.Kind.Value(f"KIND_{kind.upper()}")
        self.report(ws.RequestUpdate(request_id=run.request_id, attempt=run.attempt, kind=number, **fields), load=load)

    def pong(self, ping_id: int, epoch: int = 0, leader_id: str = "") -> None:
        pong = rs.Pong(id=ping_id, highest_fence=identity_pb2.Fence(epoch=epoch, leader_id=leader_id))
        self.stage.act(self.stage.core.worker_message, self.session, ws.WorkerSessionRequest(pong=pong))

    def disconnect(self) -> None:
        self.stage.act(self.stage.core.worker_closed, self.session)


class FakeRouter(Peer):
    def __init__(self, stage: Stage, session: int) -> None:
        super().__init__(session)
        self.stage = stage

    def submit(self, request_id: str, slo: slo_pb2.Slo | None = None, **fields: Any) -> None:
        fields = {"model": "m", "prompt_tokens": 100, "max_tokens": 50, **fields}
        submit = rs.Submit(request_id=request_id, slo=slo or self.stage.slo(), **fields)
        self.send(rs.RouterSessionRequest(submit=submit))

    def cancel(self, request_id: str, owner_gen: int = 0) -> None:
        cancel = rs.CancelRequestCommand(request_id=request_id, owner_gen=owner_gen)
        self.send(rs.RouterSessionRequest(cancel=cancel))

    def done(self, *request_ids: str, owner_gen: int = 0) -> None:
        gens = [owner_gen] * len(request_ids)
        self.send(rs.RouterSessionRequest(done=rs.RequestsDone(request_ids=request_ids, owner_gens=gens)))

    def send(self, message: rs.RouterSessionRequest) -> None:
        self.stage.act(self.stage.core.router_message, self.session, message)

    def disconnect(self) -> None:
        self.stage.act(self.stage.core.router_closed, self.session)


class Stage:
    """A core, its peers, and a clock that only the test moves. Silent peers are kept alive unless told not to."""

    def __init__(self, rules: Rules | None = None, policy: Any = None, known: Any = (), epoch: int = 7) -> None:
        """`known`: records of workers, or the keys of some that were here a moment ago; None = no memory."""
        self.now_us = 1_000_000
        self.core = SchedulerCore(rules or Rules(), policy or EarliestFirstToken())
        self.peers: dict[int, Peer] = {}
        self.higher_epochs: list[int] = []
        self.trail: list[Effect] = []
        self._sessions = itertools.count(1)
        self.remembered = 0
        self.act(self.core.begin, identity_pb2.Fence(epoch=epoch, leader_id="me"), self.memory(known))

    @staticmethod
    def memory(known: Any, scaler_epoch: int = 0) -> Memory | None:
        if known is None:
            return None
        records = (
            known_one if isinstance(known_one, WorkerRecord) else WorkerRecord(known_one, "", "m", b"f")
            for known_one in known
        )
        return Memory(tuple(records), scaler_epoch)

    @staticmethod
    def slo(tier: str = "chat", ttft_ms: int = 1_000, on_violation: int = 1, **fields: Any) -> slo_pb2.Slo:
        return slo_pb2.Slo(
            tier=tier, ttft_us=ttft_ms * MS, tpot_us=50 * MS, weight=1.0, on_violation=on_violation, **fields
        )

    @staticmethod
    def status(request_id: str, attempt: tuple[int, int], phase: str = "DECODE", **fields: Any) -> ws.RequestStatus:
        return ws.RequestStatus(
            request_id=request_id,
            attempt=Attempt(*attempt).proto(),
            phase=ws.RequestPhase.Value(f"REQUEST_PHASE_{phase}"),
            prompt_tokens=100,
            **fields,
        )

    def act(self, event: Callable[..., list[Effect]], *arguments: Any) -> list[Effect]:
        return self.perform(event(*arguments, self.now_us))

    def perform(self, effects: list[Effect]) -> list[Effect]:
        self.trail.extend(effects)
        for effect in effects:
            match effect:
                case ToRouter(session, message) | ToWorker(session, message):
                    self.peers[session].got.append(message)
                case CloseSession(session, reason):
                    self.peers[session].closed = reason
                case HigherEpoch(epoch):
                    self.higher_epochs.append(epoch)
                case Remember():
                    self.remembered += 1
        return effects

    def router(self, router_id: str = "r1", incarnation: int = 1, **fields: Any) -> FakeRouter:
        router = FakeRouter(self, next(self._sessions))
        self.peers[router.session] = router
        hello = rs.RouterHello(**{"router_id": router_id, "incarnation": incarnation, "protocol_version": 1, **fields})
        self.act(self.core.router_opened, router.session, hello)
        return router

    def worker(self, worker_id: str = "w1", incarnation: int = 1, snapshot: bool = True, **fields: Any) -> FakeWorker:
        worker = FakeWorker(self, next(self._sessions), WorkerKey(worker_id, incarnation))
        self.peers[worker.session] = worker
        capabilities = capability_pb2.EngineCapabilities(context_length=fields.pop("context_length", 1_000))
        register = {
            "identity": worker.key.proto(),
            "protocol_version": 1,
            "address": f"{worker_id}:1",
            "model": "m",
            "fingerprint": b"f",
            "role": capability_pb2.ROLE_MIXED,
            "readiness": READY,
            "capabilities": capabilities,
        }
        self.act(self.core.worker_opened, worker.session, ws.Register(**{**register, **fields}))
        return worker.snapshot() if snapshot else worker

    def tick(self, by_ms: int = 0, *alive: Peer, step_ms: int = 100) -> None:
        """Moves the time in steps with a tick each; `alive` peers answer something at each."""
        end_us = self.now_us + by_ms * MS
        while True:
            self.now_us = min(end_us, self.now_us + step_ms * MS)
            for peer in alive:
                pong = rs.Pong(id=0)
                if isinstance(peer, FakeWorker):
                    peer.pong(0)
                elif isinstance(peer, FakeRouter):
                    peer.send(rs.RouterSessionRequest(pong=pong))
            self.perform(self.core.tick(self.now_us))
            if self.now_us >= end_us:
                return

    def apply(self, **fields: Any) -> Any:
        result, effects = self.core.apply(ss.ApplyRequest(**fields), self.now_us)
        self.perform(effects)
        return result

    def kinds(self, request_id: str) -> list[tuple[str, str]]:
        return [(note.kind, note.reason) for note in self.core.explain(request_id, self.now_us)]


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture(scope="session")
def make_stage() -> type[Stage]:
    """For stages with rules, a policy, or one per hypothesis example."""
    return Stage
