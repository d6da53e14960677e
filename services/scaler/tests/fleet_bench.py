"""A bench for FleetCore: integers for time, lists for the world."""

from __future__ import annotations

from collections.abc import Iterable

from hyperflexis.common.v1 import capability_pb2, identity_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2
from hyperflexis_scaler.core.action import Action, Kind, Outcome
from hyperflexis_scaler.core.fleet import FleetCore
from hyperflexis_scaler.core.group import Group, Limits
from hyperflexis_scaler.core.instance import Instance

S = 1_000_000
READY, DRAINING = capability_pb2.READINESS_READY, capability_pb2.READINESS_DRAINING
VIEW = scheduler_service_pb2.WatchClusterResponse


class Bench:
    """A core, a clock and a list of instances."""

    def __init__(self, target: int = 2, maximum: int = 3, count_external: bool = True, term: str = "1-a") -> None:
        self.core = FleetCore("cell", [Group("chat", "llama", target, maximum, count_external)], Limits(), term)
        self.now = 100 * S
        self.born: dict[str, int] = {}
        self.dead: set[str] = set()

    def plan(self, after: int = 0, listed: bool = True) -> list[Action]:
        self.now += after
        if listed:
            self.look()
        return self.core.plan(self.now)

    def look(self) -> None:
        instances = [
            Instance(key, key.removeprefix("chat-"), key.partition("-")[0], self.now - born, key not in self.dead)
            for key, born in self.born.items()
        ]
        self.core.observe_instances(self.now, instances)

    def view(self, *workers: scheduler_service_pb2.ClusterWorker, epoch: int = 1) -> None:
        fence = identity_pb2.Fence(epoch=epoch)
        self.core.observe_cluster(self.now, VIEW(fence=fence, workers=workers))

    def settle(self, actions: Iterable[Action], outcome: Outcome = Outcome.DONE) -> None:
        for action in actions:
            self.core.settled(self.now, action, outcome)
            if action.kind is Kind.START and outcome is Outcome.DONE:
                self.born[action.instance_id] = self.now

    def running(self) -> list[str]:
        """Brings the group to its target, all ready in the cluster."""
        self.view()
        self.settle(self.plan(after=2 * S))
        self.look()
        self.view(*map(worker, self.born))
        assert self.core.plan(self.now) == []
        return sorted(self.born)


def worker(
    key: str, readiness: capability_pb2.Readiness.ValueType = READY, running: int = 0, hung: bool = False
) -> scheduler_service_pb2.ClusterWorker:
    row = scheduler_service_pb2.ClusterWorker(model="llama", readiness=readiness, hung=hung)
    row.identity.worker_id = key
    row.load.running = running
    row.tags.update({"cell": "cell", "action_id": key.removeprefix("chat-")})
    return row


def external(key: str) -> scheduler_service_pb2.ClusterWorker:
    row = worker(key)
    row.tags.clear()
    return row


def kinds(actions: Iterable[Action]) -> list[str]:
    return [f"{action.kind}{'!' if action.force else ''}" for action in actions]
