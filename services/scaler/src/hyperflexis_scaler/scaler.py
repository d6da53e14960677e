"""The scaler's life: lead or watch, round after round, and what happens to the workers when it stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from pathlib import Path

import structlog

from hyperflexis.scaler.v1 import scaler_service_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2
from hyperflexis_common.clock import Clock
from hyperflexis_scaler.config import ScalerSettings
from hyperflexis_scaler.core.action import Action
from hyperflexis_scaler.core.fleet import FleetCore
from hyperflexis_scaler.core.instance import Instance
from hyperflexis_scaler.core.report import fleet_report
from hyperflexis_scaler.faults import Faults
from hyperflexis_scaler.fleet_log import FleetLog, NotRecorded
from hyperflexis_scaler.lease import Lease, Term
from hyperflexis_scaler.metrics import CRASH_LOOP, show_fleet
from hyperflexis_scaler.providers.provider import Launch, NotDone, Provider, ProviderAway
from hyperflexis_scaler.runner import Drainer, Runner

log = structlog.get_logger(__name__)

STOP_POLL_S = 0.1
KILL_S = 5.0
"""For killed processes to be gone."""


class Scaler:
    """Ties one core per term to provider, log and scheduler."""

    def __init__(
        self,
        settings: ScalerSettings,
        config: Path | None,
        provider: Provider,
        lease: Lease,
        fleet_log: FleetLog,
        scheduler: Drainer,
        clock: Clock,
        faults: Faults,
    ) -> None:
        """`config`: the file this scaler was configured from, for its workers."""
        self._settings = settings
        self._config = settings.worker_config or config
        self._provider = provider
        self._lease = lease
        self._fleet_log = fleet_log
        self._scheduler = scheduler
        self._clock = clock
        self._faults = faults
        self._groups = {group.name: group for group in settings.groups}
        self._woken = asyncio.Event()
        self._term: Term | None = None
        self._runner = self._new_runner("0")

    @property
    def core(self) -> FleetCore:
        return self._runner.core

    @property
    def leads(self) -> bool:
        """Leads, and may act now."""
        return self._term is not None and self._term == self._lease.term and self._lease.holds()

    def wake(self) -> None:
        """Has the next round begin at once."""
        self._woken.set()

    def observe_cluster(self, view: scheduler_service_pb2.WatchClusterResponse) -> None:
        self.core.observe_cluster(self._clock.now_us(), view)

    def now_us(self) -> int:
        return self._clock.now_us()

    def report(self) -> scaler_service_pb2.GetFleetResponse:
        """The fleet as it was at the last look."""
        fence = Term(self._lease.floor, "").fence() if self._term is None else self._term.fence()
        return fleet_report(self.core, self._clock.now_us(), fence, self.leads)

    async def set_target(self, group: str, target: int) -> None:
        """Remembers it beyond this scaler. Raises UnknownGroup, OverLimit, and NotRecorded unless it leads."""
        if self._term is None:
            raise NotRecorded("this scaler does not lead")
        self.core.check_target(group, target)
        await self._fleet_log.save_target(self._term, group, target, self._groups[group].target)
        self.core.set_target(group, target)
        log.info("target set", group=group, target=target)
        self.wake()

    async def look(self) -> None:
        """Only looks: what a standby does, and every scaler before it stands for the lease."""
        await self._runner.look()
        self.core.take_closed()
        # Epochs are in action ids: a Redis restarted empty must not lead us back below those that run.
        for member in self.core.members.values():
            epoch = member.instance.action_id.partition("-")[0]
            if epoch.isdigit():
                self._lease.floor = max(self._lease.floor, int(epoch))

    async def run(self) -> None:
        """Rounds until cancelled."""
        while True:
            await self._round()
            self._show()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.tick_ms / 1_000):
                    await self._woken.wait()
            self._woken.clear()

    async def stop_workers(self) -> None:
        """Ends every instance: SIGTERM, and SIGKILL after stop_timeout_s. Called when run() has ended."""
        ids = [instance.instance_id for instance in await self._listed() if instance.alive]
        log.info("stopping workers", count=len(ids))
        for instance_id in ids:
            await self._attempt(instance_id, kill=False)
        if not await self._until_ended(self._settings.stop_timeout_s, kill=False):
            log.warning("workers did not stop; killing them")
        await self._until_ended(KILL_S, kill=True)

    async def _round(self) -> None:
        if self._lease.term != self._term and not await self._follow_lease():
            await self._runner.look()
            return
        if self._term is None:
            await self.look()
            return
        if self._lease.memory_lost and await self._restore(self._term):
            self._lease.memory_lost = False
        await self._runner.round(self._term, lambda: self.leads)

    async def _follow_lease(self) -> bool:
        """Begins a term, or ends one, with a core of its own. False: what was left for us cannot be read yet."""
        term = self._lease.term
        if term is None:
            self._term, self._runner = None, self._new_runner("0")
            return True
        runner = self._new_runner(f"{term.epoch}-{secrets.token_hex(3)}")
        try:
            intents = await self._fleet_log.intents()
            targets = await self._fleet_log.targets()
        except NotRecorded as error:
            log.warning("cannot read what the last leader left", error=str(error))
            return False
        runner.core.recover(self._clock.now_us(), intents)
        for name, (target, configured) in targets.items():
            group = self._groups.get(name)
            # A target set by hand holds until somebody configures another.
            if group is not None and configured == group.target and target <= group.max:
                runner.core.set_target(name, target)
        self._term, self._runner = term, runner
        return True

    async def _restore(self, term: Term) -> bool:
        """Writes everything anew into a Redis that forgot it."""
        log.warning("Redis lost its memory; writing intents and targets again")
        try:
            for name, group in self._groups.items():
                if self.core.targets[name] != group.target:
                    await self._fleet_log.save_target(term, name, self.core.targets[name], group.target)
        except NotRecorded:
            return False
        return await self._runner.restore(term)

    def _new_runner(self, term: str) -> Runner:
        limits = self._settings.limits(self._provider.visible_within_us)
        core = FleetCore(self._settings.cell, self._settings.core_groups(), limits, term)
        parts = (self._provider, self._fleet_log, self._scheduler, self._clock)
        return Runner(core, *parts, self._launch, self._faults)

    def _launch(self, action: Action) -> Launch:
        group = self._groups[action.group]
        flags = ["--worker-id", action.instance_id, "--listen", self._settings.worker_listen, "--model", group.model]
        environment = {"OMP_NUM_THREADS": "1"}
        if self._config is not None:
            flags = ["--config", str(self._config.resolve()), *flags]
        else:
            environment["HYPERFLEXIS_WORKER_SCHEDULERS"] = json.dumps(self._settings.schedulers)
        environment.update(group.env)
        return Launch(action.instance_id, action.action_id, action.group, [*flags, *group.args], environment)

    def _show(self) -> None:
        show_fleet(self.report())
        for name, backoff in self.core.backoff.items():
            CRASH_LOOP.labels(name).set(backoff.loops(self._clock.now_us()))

    async def _until_ended(self, limit_s: float, kill: bool) -> bool:
        """Waits until nothing lives (with `kill`: until nothing is listed). False: the limit came first."""
        deadline_us = self._clock.now_us() + int(limit_s * 1e6)
        while left := [instance for instance in await self._listed() if kill or instance.alive]:
            if self._clock.now_us() >= deadline_us:
                return False
            if kill:
                for instance in left:
                    await self._attempt(instance.instance_id, kill=True)
            await asyncio.sleep(STOP_POLL_S)
        return True

    async def _listed(self) -> list[Instance]:
        try:
            return list(await self._provider.list())
        except ProviderAway as error:
            log.warning("provider away; workers may be left", error=str(error))
            return []

    async def _attempt(self, instance_id: str, kill: bool) -> None:
        try:
            await (self._provider.kill(instance_id) if kill else self._provider.stop(instance_id))
        except (NotDone, ProviderAway) as error:
            log.warning("worker not stopped", instance=instance_id, error=str(error))
