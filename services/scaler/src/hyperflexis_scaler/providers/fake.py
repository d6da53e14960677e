"""A provider in memory, for tests of whatever uses one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hyperflexis_scaler.core.instance import Instance
from hyperflexis_scaler.providers.provider import Launch, NotDone


@dataclass(slots=True)
class FakeInstance:
    launch: Launch
    started_us: int
    visible_us: int
    alive: bool = True
    deaf: bool = False
    """Ignores stop()."""


class FakeProvider:
    """Time is `now_us`, which the test moves. Starts become visible after `delay_us`."""

    def __init__(self, visible_within_us: int = 2_000_000) -> None:
        self.visible_within_us = visible_within_us
        self.now_us = 0
        self.delay_us = 0
        self.refuse_starts = ""
        """Not empty: starts fail with this message."""
        self.instances: dict[str, FakeInstance] = {}

    async def list(self) -> list[Instance]:
        return [
            Instance(key, it.launch.action_id, it.launch.group, self.now_us - it.started_us, it.alive)
            for key, it in self.instances.items()
            if it.visible_us <= self.now_us
        ]

    async def start(self, launch: Launch) -> None:
        if self.refuse_starts:
            raise NotDone(self.refuse_starts)
        launch = replace(launch, environment=dict(launch.environment))
        self.instances[launch.instance_id] = FakeInstance(launch, self.now_us, self.now_us + self.delay_us)

    async def stop(self, instance_id: str) -> None:
        instance = self.instances.get(instance_id)
        if instance is not None and not instance.deaf:
            instance.alive = False

    async def kill(self, instance_id: str) -> None:
        self.instances.pop(instance_id, None)

    def crash(self, instance_id: str) -> None:
        """The instance dies of itself."""
        self.instances[instance_id].alive = False
