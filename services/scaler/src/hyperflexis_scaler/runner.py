"""One round of the scaler: look, decide, record, act. It awaits only its three seams, in a fixed order, so that
tests can stop it between any two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from hyperflexis.common.v1 import identity_pb2
from hyperflexis_common.clock import Clock
from hyperflexis_scaler.core.action import Action, Intent, Kind, Outcome
from hyperflexis_scaler.core.fleet import FleetCore
from hyperflexis_scaler.faults import Faults
from hyperflexis_scaler.fleet_log import NotRecorded
from hyperflexis_scaler.lease import Term
from hyperflexis_scaler.metrics import ACTIONS
from hyperflexis_scaler.providers.provider import Launch, NotDone, Provider, ProviderAway

log = structlog.get_logger(__name__)


class IntentLog(Protocol):
    """The part of FleetLog that a round needs."""

    async def record(self, term: Term, intents: Iterable[Intent]) -> None: ...

    async def forget(self, term: Term, action_ids: Iterable[str]) -> None: ...


class Drainer(Protocol):
    """The part of SchedulerClient that a round needs."""

    async def drain(self, action: Action, fence: identity_pb2.Fence) -> tuple[Outcome, str]: ...


class Runner:
    """Carries a core's decisions out."""

    def __init__(
        self,
        core: FleetCore,
        provider: Provider,
        intents: IntentLog,
        scheduler: Drainer,
        clock: Clock,
        launch: Callable[[Action], Launch],
        faults: Faults,
    ) -> None:
        self.core = core
        self._provider = provider
        self._intents = intents
        self._scheduler = scheduler
        self._clock = clock
        self._launch = launch
        self._faults = faults
        self._forgettable: set[str] = set()

    async def look(self) -> bool:
        """Shows the core what runs. False: the provider did not say, nothing can be decided."""
        try:
            instances = await self._provider.list()
        except ProviderAway as error:
            log.warning("provider away", error=str(error))
            return False
        self.core.observe_instances(self._clock.now_us(), instances)
        return True

    async def round(self, term: Term, leads: Callable[[], bool]) -> None:
        """One look and everything that follows from it. `leads` is asked again before each action."""
        if not await self.look() or not leads():
            return
        await self._forget(term)
        actions = self.core.plan(self._clock.now_us())
        recorded = await self._record(term, actions)
        for action in actions:
            if action.kind is Kind.ADOPT:
                outcome, message = Outcome.DONE, ""
            elif recorded and leads():
                outcome, message = await self._perform(action, term)
            else:
                outcome, message = Outcome.SKIPPED, ""
            self._settle(action, outcome, message)

    async def restore(self, term: Term) -> bool:
        """Writes every open intent again, for a Redis that lost them. False: try again."""
        try:
            await self._intents.record(term, self.core.open_intents())
        except NotRecorded:
            return False
        return True

    async def _record(self, term: Term, actions: list[Action]) -> bool:
        intents = [self.core.intent(action) for action in actions if action.kind is not Kind.ADOPT]
        if not intents:
            return True
        try:
            await self._intents.record(term, intents)
        except NotRecorded as error:
            log.warning("nothing is done that cannot be recorded", actions=len(intents), error=str(error))
            return False
        self._faults.passed("intent_written")
        return True

    async def _forget(self, term: Term) -> None:
        self._forgettable |= self.core.take_closed()
        if not self._forgettable:
            return
        try:
            await self._intents.forget(term, sorted(self._forgettable))
        except NotRecorded:
            return
        self._forgettable.clear()

    async def _perform(self, action: Action, term: Term) -> tuple[Outcome, str]:
        try:
            if action.kind is Kind.DRAIN:
                answer = await self._scheduler.drain(action, term.fence())
                if answer[0] is Outcome.DONE:
                    self._faults.passed("drained")
                return answer
            if action.kind is Kind.START:
                await self._provider.start(self._launch(action))
            elif action.force:
                await self._provider.kill(action.instance_id)
            else:
                await self._provider.stop(action.instance_id)
                self._faults.passed("stopped")
        except NotDone as error:
            return Outcome.FAILED, str(error)
        except ProviderAway as error:
            return Outcome.UNKNOWN, str(error)
        return Outcome.DONE, ""

    def _settle(self, action: Action, outcome: Outcome, message: str) -> None:
        self.core.settled(self._clock.now_us(), action, outcome, message)
        if outcome is Outcome.SKIPPED:
            return
        ACTIONS.labels(action.kind, outcome).inc()
        log.info(
            "action",
            kind=str(action.kind),
            group=action.group,
            instance=action.instance_id,
            reason=action.reason,
            outcome=str(outcome),
            **({"message": message} if message else {}),
            **({"force": True} if action.force else {}),
        )
