"""The scheduler's core alone: what one Submit costs at a given number of workers and active requests."""

from __future__ import annotations

import gc
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from hyperflexis.common.v1 import capability_pb2, identity_pb2, slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.step_time import SEEDS
from hyperflexis_scheduler.core.dispatch_policy import POLICIES
from hyperflexis_scheduler.core.effects import Effect, ToRouter, ToWorker
from hyperflexis_scheduler.core.memory import Memory
from hyperflexis_scheduler.core.rules import Rules
from hyperflexis_scheduler.core.scheduler import SchedulerCore

TIERS = (("chat", 500), ("code", 500), ("math", 3_000), ("summarise", 15_000))
"""Name and milliseconds to the first token: the built-in tiers."""
ROUTER_SESSION = 1
INTERARRIVAL_US = 2_000
REPORT_US = 1_000_000
"""Workers report at least this often."""


class Stage:
    """A leader with workers that only queue: every active request has its prefill before it, the dearest case."""

    def __init__(self, policy: str, workers: int, seed: int) -> None:
        self._chance = random.Random(seed)
        self._now_us = self._reported_us = 1_000_000_000
        self._submitted = 0
        self._oldest: deque[rs.Placed] = deque()
        self._reported = dict.fromkeys(range(2, 2 + workers), 0)
        self._applied = dict.fromkeys(self._reported, 0)
        self._session_of: dict[str, int] = {}
        self.core = SchedulerCore(Rules(), POLICIES[policy]())
        self.core.begin(identity_pb2.Fence(epoch=1, leader_id="bench"), Memory(), self._now_us)
        hello = rs.RouterHello(router_id="router", incarnation=1, protocol_version=PROTOCOL_VERSION)
        self.core.router_opened(ROUTER_SESSION, hello, self._now_us)
        for session in self._reported:
            self._add_worker(session)

    def submit(self) -> tuple[float, float]:
        """One new request; the seconds until its effects are there, and of CPU."""
        tier, ttft_ms = self._chance.choice(TIERS)
        submit = rs.Submit(
            request_id=f"{self._submitted:032x}",
            model="m",
            tenant="default",
            prompt_tokens=self._chance.randrange(64, 4_096),
            max_tokens=256,
            slo=slo_pb2.Slo(
                tier=tier,
                ttft_us=ttft_ms * 1_000,
                tpot_us=50_000,
                weight=1.0,
                on_violation=slo_pb2.ON_VIOLATION_BEST_EFFORT,
            ),
        )
        self._submitted += 1
        self._now_us += INTERARRIVAL_US
        if self._now_us - self._reported_us >= REPORT_US:
            self._report_all()
        message = rs.RouterSessionRequest(submit=submit)
        cpu = time.thread_time()
        seconds, effects = _timed(self.core.router_message, ROUTER_SESSION, message, self._now_us)
        cpu = time.thread_time() - cpu
        placed = [e.message.placed for e in effects if isinstance(e, ToRouter) and e.message.HasField("placed")]
        for effect in effects:
            if isinstance(effect, ToWorker):
                self._applied[effect.session] = effect.message.seq
        if len(placed) != 1:
            raise RuntimeError(f"a Submit was answered by {len(placed)} Placed")
        self._oldest.append(placed[0])
        return seconds, cpu

    def finish_oldest(self) -> float:
        """A worker reports the end of the oldest request; the seconds that took."""
        placed = self._oldest.popleft()
        update = ws.RequestUpdate(
            request_id=placed.request_id, attempt=placed.attempt, kind=ws.RequestUpdate.KIND_FINISHED
        )
        return self._report(self._session_of[placed.worker.worker_id], [update])

    def tick(self) -> float:
        """The seconds of one tick, as they come each 100 ms."""
        return _timed(self.core.tick, self._now_us)[0]

    def _report_all(self) -> None:
        """Each worker's load, and that its commands have come."""
        self._reported_us = self._now_us
        for session in self._reported:
            self._report(session, [])

    def _report(self, session: int, updates: list[ws.RequestUpdate]) -> float:
        self._reported[session] += 1
        cell = self.core.cell
        assert cell is not None
        worker = cell.fleet.by_session[session]
        tokens = sum(state.prefill_tokens for state in worker.attempts.values())
        load = ws.WorkerLoad(waiting=len(worker.attempts), queued_prefill_tokens=tokens, steps=self._reported[session])
        report = ws.Report(
            report_seq=self._reported[session], applied_seq=self._applied[session], load=load, updates=updates
        )
        message = ws.WorkerSessionRequest(report=report)
        return _timed(self.core.worker_message, session, message, self._now_us)[0]

    def _add_worker(self, session: int) -> None:
        key = WorkerKey(f"worker-{session:05d}", session)
        self._session_of[key.worker_id] = session
        register = ws.Register(
            identity=key.proto(),
            protocol_version=PROTOCOL_VERSION,
            address=f"{key.worker_id}:1",
            model="m",
            fingerprint=b"f",
            role=capability_pb2.ROLE_MIXED,
            readiness=capability_pb2.READINESS_READY,
            capabilities=capability_pb2.EngineCapabilities(context_length=65_536, max_num_tokens=8_192),
        )
        self.core.worker_opened(session, register, self._now_us)
        snapshot = ws.Snapshot(readiness=capability_pb2.READINESS_READY)
        self.core.worker_message(session, ws.WorkerSessionRequest(snapshot=snapshot), self._now_us)
        self._reported[session] = 1
        step_time = SEEDS["h200/llama-3.1-8b/tp1"].proto()
        report = ws.Report(report_seq=1, step_time=step_time)
        self.core.worker_message(session, ws.WorkerSessionRequest(report=report), self._now_us)


def queued(policy: str, workers: int, active: int, seed: int) -> Stage:
    """A stage with `active` requests queued. Its memory is frozen, as the service's is: full collections are rare."""
    stage = Stage(policy, workers, seed)
    for _ in range(active):
        stage.submit()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    return stage


def decisions(stage: Stage, count: int) -> dict[str, list[float]]:
    """Microseconds of `count` submits (on the clock, and of this thread's CPU), of the reports of as many ends, and
    of ticks; the number of queued requests stays."""
    seen: dict[str, list[float]] = {"submit_us": [], "submit_cpu_us": [], "report_us": [], "tick_us": []}
    for number in range(count):
        seconds, cpu = stage.submit()
        seen["submit_us"].append(seconds * 1e6)
        seen["submit_cpu_us"].append(cpu * 1e6)
        seen["report_us"].append(stage.finish_oldest() * 1e6)
        if number % 50 == 0:
            seen["tick_us"].append(stage.tick() * 1e6)
    return seen


def _timed(event: Callable[..., list[Effect]], *arguments: Any) -> tuple[float, list[Effect]]:
    began = time.perf_counter()
    effects = event(*arguments)
    return time.perf_counter() - began, effects
