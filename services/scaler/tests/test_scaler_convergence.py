"""Any interleaving of failures, delays and crashes of the scaler between any two of its steps: never more than
the maximum, and, once the world behaves, exactly the target and nothing else.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Iterable, Sequence
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hyperflexis.common.v1 import capability_pb2, identity_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2
from hyperflexis_common.clock import FakeClock
from hyperflexis_scaler.core.action import Action, Intent, Outcome
from hyperflexis_scaler.core.fleet import FleetCore
from hyperflexis_scaler.core.group import Group, Limits
from hyperflexis_scaler.core.instance import Instance
from hyperflexis_scaler.faults import Faults
from hyperflexis_scaler.fleet_log import NotRecorded
from hyperflexis_scaler.lease import Term
from hyperflexis_scaler.providers.fake import FakeProvider
from hyperflexis_scaler.providers.provider import Launch, NotDone, ProviderAway
from hyperflexis_scaler.runner import Runner

# Targets at the maximum: there every instance too many shows.
GROUPS = (Group("chat", "llama", 2, 2), Group("code", "qwen", 1, 1, count_external=False))
CELL = "cell"
SECOND = 1_000_000


class Step:
    """A point at which the scaler may be killed."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class World:
    """Provider, Redis and scheduler: what survives the scaler."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.provider = FakeProvider()
        self.start_fails = "no"
        self.list_away = False
        self.redis_away = "no"
        self.scheduler_up = True
        self.intents: dict[str, Intent] = {}
        self.epoch = 0
        self.draining: set[str] = set()
        self.frozen: set[str] = set()
        self.hung: set[str] = set()
        self.externals: set[str] = set()
        self.targets = {group.name: group.target for group in GROUPS}

    def advance(self, us: int) -> None:
        self.provider.now_us = self.clock.advance(us)

    # The provider, with steps

    visible_within_us = 2 * SECOND

    async def list(self) -> Sequence[Instance]:
        await Step()
        if self.list_away:
            raise ProviderAway("list")
        return await self.provider.list()

    async def start(self, launch: Launch) -> None:
        await Step()
        if self.start_fails == "refused":
            raise NotDone("refused")
        if self.start_fails != "lost":
            await self.provider.start(launch)
        await Step()
        if self.start_fails in ("lost", "answer lost"):
            raise ProviderAway("start")

    async def stop(self, instance_id: str) -> None:
        await Step()
        await self.provider.stop(instance_id)
        await Step()

    async def kill(self, instance_id: str) -> None:
        await Step()
        await self.provider.kill(instance_id)
        await Step()

    # Redis

    async def record(self, term: Term, intents: Iterable[Intent]) -> None:
        await Step()
        if self.redis_away == "yes" or term.epoch != self.epoch:
            raise NotRecorded("away")
        self.intents |= {intent.action_id: intent for intent in intents}
        await Step()
        if self.redis_away == "answers lost":
            raise NotRecorded("answer lost")

    async def forget(self, term: Term, action_ids: Iterable[str]) -> None:
        await Step()
        if self.redis_away == "yes" or term.epoch != self.epoch:
            raise NotRecorded("away")
        for action_id in action_ids:
            self.intents.pop(action_id, None)
        await Step()

    # The scheduler

    async def drain(self, action: Action, fence: identity_pb2.Fence) -> tuple[Outcome, str]:
        await Step()
        if not self.scheduler_up:
            return Outcome.SKIPPED, ""
        self.draining.add(action.instance_id)
        await Step()
        return Outcome.DONE, ""

    def view(self) -> scheduler_service_pb2.WatchClusterResponse:
        view = scheduler_service_pb2.WatchClusterResponse(fence=identity_pb2.Fence(epoch=1))
        for key, instance in self.provider.instances.items():
            if instance.alive and key not in self.frozen:
                worker = view.workers.add(model="llama", hung=key in self.hung)
                worker.identity.worker_id = key
                worker.readiness = (
                    capability_pb2.READINESS_DRAINING if key in self.draining else capability_pb2.READINESS_READY
                )
                worker.tags.update({"cell": CELL, "action_id": instance.launch.action_id})
        for key in self.externals:
            worker = view.workers.add(model="llama", readiness=capability_pb2.READINESS_READY)
            worker.identity.worker_id = key
        return view


def drive(coroutine: Coroutine[Any, Any, None], steps: int = 10**9) -> bool:
    """Runs it for so many steps, then kills it. True: it ended by itself."""
    for _ in range(steps + 1):
        try:
            coroutine.send(None)
        except StopIteration:
            return True
    coroutine.close()
    return False


class Convergence(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @initialize()
    def boot(self) -> None:
        """A new scaler process leads, and reads what the one before it left."""
        world = self.world
        world.epoch += 1
        self.term = Term(world.epoch, "scaler")
        core = FleetCore(CELL, GROUPS, Limits(visible_within_us=world.visible_within_us), f"{world.epoch}-aa")
        self.runner = Runner(
            core,
            world,
            world,
            world,
            world.clock,
            lambda action: Launch(action.instance_id, action.action_id, action.group),
            Faults(),
        )
        core.recover(world.clock.now_us(), list(world.intents.values()))
        for name, target in world.targets.items():
            core.set_target(name, target)

    def see_cluster(self) -> None:
        if self.world.scheduler_up:
            self.runner.core.observe_cluster(self.world.clock.now_us(), self.world.view())

    @rule(ms=st.sampled_from([0, 100, 500, 1_500, 3_000]), times=st.integers(1, 4))
    def rounds(self, ms: int, times: int) -> None:
        for _ in range(times):
            self.world.advance(ms * 1_000)
            self.see_cluster()
            assert drive(self.runner.round(self.term, lambda: True))

    @rule(steps=st.integers(0, 25))
    def killed_in_a_round(self, steps: int) -> None:
        self.see_cluster()
        drive(self.runner.round(self.term, lambda: True), steps)
        self.boot()

    @rule(how=st.sampled_from(["no", "refused", "lost", "answer lost"]), delay_ms=st.integers(0, 2_000))
    def starts(self, how: str, delay_ms: int) -> None:
        self.world.start_fails = how
        self.world.provider.delay_us = delay_ms * 1_000

    @rule(how=st.sampled_from(["no", "yes", "answers lost"]))
    def redis(self, how: str) -> None:
        self.world.redis_away = how

    @rule(away=st.booleans())
    def listing(self, away: bool) -> None:
        self.world.list_away = away

    @rule(up=st.booleans())
    def scheduler(self, up: bool) -> None:
        self.world.scheduler_up = up

    @rule(pick=st.integers(0, 5), how=st.sampled_from(["dies", "freezes", "hangs"]))
    def instance_fails(self, pick: int, how: str) -> None:
        keys = sorted(self.world.provider.instances)
        if not keys:
            return
        key = keys[pick % len(keys)]
        if how == "dies":
            self.world.provider.crash(key)
        elif how == "freezes":
            self.world.frozen.add(key)
            self.world.provider.instances[key].deaf = True
        else:
            self.world.hung.add(key)

    @rule(count=st.integers(0, 2))
    def externals_are(self, count: int) -> None:
        self.world.externals = {f"compose-{number}" for number in range(count)}

    @rule(group=st.sampled_from(GROUPS), wanted=st.integers(0, 2))
    def target_is_set(self, group: Group, wanted: int) -> None:
        self.world.targets[group.name] = min(wanted, group.maximum)
        self.runner.core.set_target(group.name, self.world.targets[group.name])

    @rule(s=st.sampled_from([5, 35, 70]))
    def time_passes(self, s: int) -> None:
        self.world.advance(s * SECOND)

    @invariant()
    def never_more_than_the_maximum(self) -> None:
        for group in GROUPS:
            present = [it for it in self.world.provider.instances.values() if it.launch.group == group.name]
            assert len(present) <= group.maximum, (group.name, [it.launch.instance_id for it in present])

    def teardown(self) -> None:
        """The world behaves again: the fleet comes to what is wanted, and nothing else is left."""
        if not hasattr(self, "runner"):
            return
        world = self.world
        self.starts("no", 0)
        world.redis_away, world.list_away, world.scheduler_up = "no", False, True
        for _ in range(240):
            self.rounds(1_000, 1)
            self.never_more_than_the_maximum()
        for group in GROUPS:
            externals = len(world.externals) if group.count_external else 0
            expected = max(0, world.targets[group.name] - externals)
            present = [it for it in world.provider.instances.values() if it.launch.group == group.name]
            assert len(present) == expected and all(it.alive for it in present)
        assert not world.intents and not self.runner.core.pending
        assert not (world.frozen | world.hung) & set(world.provider.instances), "what does not answer is replaced"


Convergence.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestConvergence = Convergence.TestCase
