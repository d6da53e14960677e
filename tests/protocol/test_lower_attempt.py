"""An attempt below the one that its router knows is no answer to a Submit (docs/protocol.md, sections 2 and 3)."""

from __future__ import annotations

from typing import Any

import pytest

from hyperflexis.common.v1 import capability_pb2, identity_pb2, slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2, worker_session_pb2
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.attempt import Attempt, WorkerKey
from hyperflexis_scheduler.core.dispatch_policy import POLICIES
from hyperflexis_scheduler.core.effects import Effect, ToRouter
from hyperflexis_scheduler.core.memory import Memory, WorkerRecord
from hyperflexis_scheduler.core.rules import Rules
from hyperflexis_scheduler.core.scheduler import SchedulerCore

OLDER, KNOWN = Attempt(1, 2), Attempt(2, 2)
ROUTER, WORKER = 1, 2


def leader_that_saw(phase: worker_session_pb2.RequestPhase.ValueType) -> SchedulerCore:
    """A third leader, whose only worker shows the attempt of the first."""
    core = SchedulerCore(Rules(), POLICIES["least_requests"]())
    core.begin(identity_pb2.Fence(epoch=3, leader_id="s3"), Memory((WorkerRecord(WorkerKey("w", 1), "", "m", b""),)), 0)
    register = worker_session_pb2.Register(
        identity=identity_pb2.WorkerIdentity(worker_id="w", incarnation=1),
        protocol_version=PROTOCOL_VERSION,
        address="w:1",
        model="m",
        capabilities=capability_pb2.EngineCapabilities(context_length=2_000),
        role=capability_pb2.ROLE_MIXED,
        readiness=capability_pb2.READINESS_READY,
    )
    core.worker_opened(WORKER, register, 0)
    held = worker_session_pb2.RequestStatus(
        request_id="q", attempt=OLDER.proto(), phase=phase, prompt_tokens=10, output_tokens=100
    )
    snapshot = worker_session_pb2.Snapshot(requests=[held], readiness=capability_pb2.READINESS_READY)
    core.worker_message(WORKER, worker_session_pb2.WorkerSessionRequest(snapshot=snapshot), 0)
    hello = router_session_pb2.RouterHello(router_id="r", incarnation=1, protocol_version=PROTOCOL_VERSION)
    core.router_opened(ROUTER, hello, 0)
    return core


def answers(effects: list[Effect]) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, ToRouter)]


@pytest.mark.parametrize("phase", [worker_session_pb2.REQUEST_PHASE_DECODE, worker_session_pb2.REQUEST_PHASE_FINISHED])
def test_a_new_leader_does_not_answer_with_it(phase: worker_session_pb2.RequestPhase.ValueType) -> None:
    """The router would pass over it, and wait for ever: to it, its Submit has been answered."""
    core = leader_that_saw(phase)
    submit = router_session_pb2.Submit(
        request_id="q",
        model="m",
        prompt_tokens=10,
        max_tokens=117,
        slo=slo_pb2.Slo(tier="chat", ttft_us=1_000_000, tpot_us=50_000),
        resume=True,
        committed_tokens=58,
        last_attempt=KNOWN.proto(),
    )
    said = answers(core.router_message(ROUTER, router_session_pb2.RouterSessionRequest(submit=submit), 1_000))
    assert said, "one of Placed, Queued and Refused is due"
    placed = [Attempt.of(message.placed.attempt) for message in said if message.HasField("placed")]
    assert all(attempt > KNOWN for attempt in placed), f"placed as {placed}, where its router knows {KNOWN}"
