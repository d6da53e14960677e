"""The whole core in a virtual network: routers and workers that follow the protocol, and faults in any order.

What must hold whatever happens: a request has at most one current attempt, its router and the core agree on
it in the end, every request ends, and the core's indices never disagree.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis.common.v1 import identity_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.attempt import NO_ATTEMPT, Attempt
from hyperflexis_scheduler.core.request import Phase


class Machine:
    """A worker process: obeys commands, remembers attempts over sessions."""

    def __init__(self, stage: Any, worker_id: str) -> None:
        self.stage, self.worker_id, self.incarnation = stage, worker_id, 0
        self.held: dict[str, Attempt] = {}
        self.peer: Any = None
        self.restart()

    def restart(self) -> None:
        self.incarnation += 1
        self.held.clear()
        self.connect()

    def connect(self) -> None:
        self.peer = self.stage.worker(self.worker_id, self.incarnation, snapshot=False)
        self._read = 0
        self.obey()
        statuses = [self.stage.status(name, attempt, "WAITING") for name, attempt in self.held.items()]
        self.peer.snapshot(*statuses)

    def obey(self) -> None:
        while self._read < len(self.peer.got):
            message = self.peer.got[self._read]
            self._read += 1
            kind = message.WhichOneof("message")
            if kind in ("run", "cancel", "revoke"):
                self._command(kind, getattr(message, kind))

    def finish_one(self, kind: str) -> None:
        for name, attempt in list(self.held.items())[:1]:
            del self.held[name]
            self.peer.update(kind, ws.RequestStatus(request_id=name, attempt=attempt.proto()))

    def _command(self, kind: str, command: Any) -> None:
        name, attempt = command.request_id, Attempt.of(command.attempt)
        held = self.held.get(name, NO_ATTEMPT)
        if kind == "run":
            assert attempt > held, "a Run must be a new attempt"
            self.held[name] = attempt
        elif name in self.held and held <= attempt:
            del self.held[name]
            if kind == "revoke":
                self.peer.update("revoked", command)


class Front:
    """A router process: submits until each request has ended, takes only rising attempts."""

    def __init__(self, stage: Any) -> None:
        self.stage = stage
        self.current: dict[str, Attempt] = {}
        self.ended: set[str] = set()
        self.connect()

    def connect(self) -> None:
        self.peer = self.stage.router()
        self._read = 0
        for name in self.current:
            if name not in self.ended:
                self.submit(name, resume=True)

    def submit(self, name: str, resume: bool = False) -> None:
        attempt = self.current.setdefault(name, NO_ATTEMPT)
        self.peer.submit(name, resume=resume, last_attempt=attempt.proto())

    def obey(self) -> None:
        while self._read < len(self.peer.got):
            message = self.peer.got[self._read]
            self._read += 1
            kind = message.WhichOneof("message")
            body = getattr(message, kind)
            if kind == "placed":
                self.current[body.request_id] = max(self.current[body.request_id], Attempt.of(body.attempt))
            elif kind == "lost" and Attempt.of(body.attempt) == self.current[body.request_id]:
                self.submit(body.request_id, resume=True)
            elif kind == "refused":
                self.ended.add(body.request_id)


def check(stage: Any) -> None:
    """The core's indices agree with each other."""
    cell = stage.core.cell
    states = list(cell.book._requests.values())
    assert cell.book.active == sum(state.phase.active for state in states)
    placed = {state.request_id: state for state in states if state.phase is Phase.PLACED}
    on_workers = [(name, worker) for worker in cell.fleet for name in worker.attempts]
    assert sorted(name for name, _ in on_workers) == sorted(placed)
    for name, worker in on_workers:
        assert placed[name].worker is worker and not worker.gone
        assert set(worker.revocable) <= set(worker.attempts)
    held = {state.request_id for state in states if state.phase is Phase.HELD}
    assert held == set(cell.hold._entries)
    assert {state.request_id for state in states if state.phase is Phase.SETTLING} == set(cell.settling)
    for model, pool in cell.fleet.pools.items():
        assert pool.eligible == [
            worker for worker in sorted(pool.workers.values(), key=lambda w: w.key) if worker.accepts
        ]
        assert pool.revoking == sum(state.revoking for state in placed.values() if state.model == model)


steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["submit", "again", "finish", "gave_up", "lost", "restart", "drop_worker", "drop_router", "cancel"]
            + ["failed", "tick", "tick", "drain", "leader", "eat_placed", "done"]
        ),
        st.integers(0, 5),
    ),
    max_size=60,
)


@settings(max_examples=250, deadline=None)
@given(story=steps)
def test_whatever_breaks_indices_agree_and_every_request_ends(make_stage, story):
    stage = make_stage()
    machines = [Machine(stage, f"w{number}") for number in range(3)]
    front = Front(stage)
    epoch, submitted = 7, 0
    for what, number in story:
        machine, name = machines[number % 3], f"q{number}"
        match what:
            case "submit":
                front.submit(f"q{submitted}")
                submitted += 1
            case "again" if name in front.current:
                front.submit(name, resume=True)
            case "finish" | "gave_up" | "lost":
                machine.finish_one({"finish": "finished"}.get(what, what))
            case "restart":
                machine.restart()
            case "drop_worker":
                machine.peer.disconnect()
                stage.tick(100 * number)
                machine.connect()
            case "drop_router":
                front.peer.disconnect()
                front.connect()
            case "cancel" if name in front.current:
                front.peer.cancel(name)
                front.ended.add(name)
            case "done" if name in front.current:
                front.peer.done(name)
                front.ended.add(name)
            case "failed" if name in front.current:
                attempt = front.current[name].proto()
                front.peer.submit(name, resume=True, last_attempt=attempt, last_attempt_failed=True)
            case "eat_placed":
                front._read = len(front.peer.got)
            case "tick":
                stage.tick(100 * number, front.peer, *(m.peer for m in machines))
            case "drain":
                undo = number % 2 == 0
                drain = ws.Drain(undo=undo)
                stage.apply(action_id=str(len(stage.trail)), worker_id=machine.worker_id, drain=drain)
            case "leader":
                epoch += 1
                fence = identity_pb2.Fence(epoch=epoch, leader_id="me")
                stage.act(stage.core.begin, fence, stage.core.memory() if number else None)
                front.connect()
                for m in machines:
                    m.connect()
        settle(machines, front)
        check(stage)
    for machine in machines:
        stage.apply(action_id=f"end{machine.worker_id}", worker_id=machine.worker_id, drain=ws.Drain(undo=True))
    finish_everything(stage, machines, front)
    check(stage)


def settle(machines: list[Machine], front: Front) -> None:
    for _ in range(4):
        for machine in machines:
            machine.obey()
        front.obey()


def finish_everything(stage: Any, machines: list[Machine], front: Front) -> None:
    """With no more faults, every request that its router still wants is placed where the core says, and ends."""
    for _ in range(40):
        settle(machines, front)
        stage.tick(100, front.peer, *(m.peer for m in machines))
        for name in front.current:
            if name not in front.ended:
                front.submit(name, resume=True)
        settle(machines, front)
        for machine in machines:
            machine.finish_one("finished")
    for name, attempt in front.current.items():
        state = stage.core.cell.book.get(name)
        if name not in front.ended:
            assert state.phase is Phase.FINISHED and state.attempt == attempt
    assert not any(machine.held for machine in machines)
