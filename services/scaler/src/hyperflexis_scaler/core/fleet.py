"""The fleet: desired groups and observations in, actions out.

Invariants, whatever fails and whenever this process dies: a group never has more than `maximum` instances;
what should run comes to run; what runs is wanted or on its way out. They rest on three rules: a start holds
its place from before the provider is called until its instance is listed or cannot come any more; an instance
holds its place until it is no longer listed; and nothing is decided before both the intents of the scaler
before this one and the provider's list are known.
"""

from __future__ import annotations

from collections.abc import Iterable

from hyperflexis.scheduler.v1 import scheduler_service_pb2
from hyperflexis_scaler.core.action import Action, Intent, Kind, Outcome
from hyperflexis_scaler.core.backoff import BackOff
from hyperflexis_scaler.core.cluster import Cluster, burden, drained
from hyperflexis_scaler.core.group import Group, Limits
from hyperflexis_scaler.core.history import Done, History
from hyperflexis_scaler.core.instance import Instance, Member, PendingStart
from hyperflexis_scaler.core.removal import Phase, Removal

GONE_US = 3_000_000
"""A draining worker missing from the cluster for this long has nothing left to serve."""


class UnknownGroup(Exception):
    """No group of that name; the message lists those there are."""


class OverLimit(Exception):
    """More than the group's maximum; the message says what it is."""


class FleetCore:
    """One leader's time. `term` is unique to it and goes into every action id, so that no two are alike."""

    def __init__(self, cell: str, groups: Iterable[Group], limits: Limits, term: str) -> None:
        self.groups = {group.name: group for group in groups}
        self.targets = {name: group.target for name, group in self.groups.items()}
        self.backoff = {name: BackOff() for name in self.groups}
        self.cluster = Cluster(cell, limits.external_us)
        self.members: dict[str, Member] = {}
        self.pending: dict[str, PendingStart] = {}
        self.history = History()
        self._limits = limits
        self._term = term
        self._actions = 0
        self._listed = False
        self._recovered: dict[str, Intent] = {}
        self._closed: set[str] = set()
        self._adopted: list[Action] = []

    # What happened

    def recover(self, now_us: int, intents: Iterable[Intent]) -> None:
        """What the scaler before this one meant to do. Called once, before the first observation."""
        for intent in intents:
            if intent.kind is Kind.START:
                deadline_us = now_us + intent.timeout_us
                self.pending[intent.instance_id] = PendingStart(intent.action_id, intent.group, 0, deadline_us)
            else:
                self._recovered[intent.instance_id] = intent

    def observe_instances(self, now_us: int, instances: Iterable[Instance]) -> None:
        """The provider's list, complete and younger than every answered start."""
        listed = {instance.instance_id: instance for instance in instances}
        for instance_id in [key for key in self.members if key not in listed]:
            member = self.members.pop(instance_id)
            if member.removal is not None:
                self._closed.add(member.removal.action_id)
            else:
                self._died(now_us, member)
        for instance in listed.values():
            member = self.members.get(instance.instance_id) or self._joined(now_us, instance)
            member.instance = instance
            if not instance.alive and (member.removal is None or member.removal.phase is not Phase.KILLING):
                self._ended(now_us, member)
        self._closed.update(intent.action_id for intent in self._recovered.values())
        self._recovered.clear()
        self._listed = True

    def observe_cluster(self, now_us: int, view: scheduler_service_pb2.WatchClusterResponse) -> None:
        self.cluster.observe(now_us, view)

    def set_target(self, name: str, target: int) -> None:
        """Raises UnknownGroup and OverLimit."""
        self.check_target(name, target)
        self.targets[name] = target

    def check_target(self, name: str, target: int) -> None:
        """Raises UnknownGroup and OverLimit."""
        group = self.groups.get(name)
        if group is None:
            known = ", ".join(sorted(self.groups)) or "none is configured"
            raise UnknownGroup(f"no group {name!r}; groups: {known}")
        if target > group.maximum:
            raise OverLimit(f"group {name!r} may have {group.maximum} workers, not {target}")

    def settled(self, now_us: int, action: Action, outcome: Outcome, message: str = "") -> None:
        """The answer to an action. Every planned action gets exactly one."""
        if outcome is not Outcome.SKIPPED:
            self.history.add(Done(action, now_us, outcome, message))
        if action.kind is Kind.START:
            self._start_settled(now_us, action, outcome)
        elif (member := self.members.get(action.instance_id)) is not None and member.removal is not None:
            member.removal.settled(action.kind, outcome, now_us)

    def take_closed(self) -> set[str]:
        """Ids of intents whose effects are all visible: they can be forgotten."""
        closed, self._closed = self._closed, set()
        return closed

    def open_intents(self) -> list[Intent]:
        """Everything that is under way, for a log that lost its memory."""
        starts = [self._intent(p.action_id, Kind.START, p.group, key, "") for key, p in self.pending.items()]
        removals = [
            self._intent(m.removal.action_id, removal_kind(m.removal), m.instance.group, key, m.removal.reason)
            for key, m in self.members.items()
            if m.removal is not None
        ]
        return starts + removals

    # What to do

    def plan(self, now_us: int) -> list[Action]:
        """What to do now. Record the intents (but for ADOPT, which only tells), then act, then tell settled()."""
        if not self._listed:
            return []
        self._expire_pending(now_us)
        for key, member in self.members.items():
            self._judge(now_us, key, member)
        for name in self.groups:
            self._scale_in(now_us, name)
        actions, self._adopted = self._adopted, []
        actions += [action for key, member in self.members.items() if (action := self._step(now_us, key, member))]
        for name in self.groups:
            actions += self._scale_out(now_us, name)
        return actions

    def intent(self, action: Action) -> Intent:
        """What to record before doing it."""
        return self._intent(action.action_id, action.kind, action.group, action.instance_id, action.reason)

    def counted(self, name: str) -> list[str]:
        """Ids of ours that count towards the group's target."""
        return [key for key, member in self.members.items() if member.instance.group == name and member.counts]

    def externals(self, now_us: int, name: str) -> list[str]:
        """Ids of workers of somebody else that count; each counts for the first group that wants its model."""
        group = self.groups[name]
        first = next((g for g in self.groups.values() if g.model == group.model and g.count_external), None)
        return self.cluster.externals(now_us, group.model) if first is group else []

    # Observations, in detail

    def _joined(self, now_us: int, instance: Instance) -> Member:
        """An instance is listed for the first time: started by us, or found."""
        member = self.members[instance.instance_id] = Member(instance)
        pending = self.pending.pop(instance.instance_id, None)
        intent = self._recovered.pop(instance.instance_id, None)
        if pending is not None:
            member.restarts = pending.restarts
            self._closed.add(pending.action_id)
        if intent is not None:
            phase = Phase.DRAINING if intent.kind is Kind.DRAIN else Phase.STOPPING
            kind = Kind.REAP if intent.kind is Kind.REAP else Kind.STOP
            self._remove(now_us, member, kind, intent.reason, phase, intent.action_id)
        elif instance.group not in self.groups:
            self._remove(now_us, member, Kind.REAP, f"group {instance.group!r} is not configured", Phase.DRAINING)
        elif instance.alive and (pending is None or not pending.action_id.startswith(f"{self._term}-")):
            reason = "found running" if pending is None else "found running, as intended"
            adopted = Action(instance.action_id, Kind.ADOPT, instance.group, instance.instance_id, reason)
            self._adopted.append(adopted)
        return member

    def _ended(self, now_us: int, member: Member) -> None:
        """Its main process ended; what is left of it has to go."""
        if member.removal is None:
            self._died(now_us, member)
            reason = f"ended: {member.instance.detail or 'no exit status known'}"
            self._remove(now_us, member, Kind.REAP, reason, Phase.KILLING)
        else:
            member.removal.advance(Phase.KILLING, now_us)

    def _died(self, now_us: int, member: Member) -> None:
        if (backoff := self.backoff.get(member.instance.group)) is not None:
            backoff.failed(now_us, member.instance.age_us)

    def _start_settled(self, now_us: int, action: Action, outcome: Outcome) -> None:
        pending = self.pending.get(action.instance_id)
        if pending is None:
            return
        if outcome in (Outcome.DONE, Outcome.UNKNOWN):
            pending.deadline_us = now_us + self._limits.visible_within_us
            return
        del self.pending[action.instance_id]
        self._closed.add(action.action_id)
        if outcome is not Outcome.SKIPPED:
            self.backoff[action.group].failed(now_us, 0)

    def _expire_pending(self, now_us: int) -> None:
        for instance_id, pending in list(self.pending.items()):
            if pending.deadline_us is not None and now_us > pending.deadline_us:
                del self.pending[instance_id]
                self._closed.add(pending.action_id)
                # A start of the scaler before this one says nothing about the group: that scaler died.
                if pending.action_id.startswith(f"{self._term}-"):
                    self.backoff[pending.group].failed(now_us, 0)

    # Decisions, in detail

    def _judge(self, now_us: int, key: str, member: Member) -> None:
        """Keeps the health timers and begins the removal of what does not answer."""
        member.health.observe(now_us, self.cluster.workers.get(key), self.cluster.fresh(now_us))
        if member.removal is not None:
            return
        if reason := member.health.ailment(now_us, member.instance.age_us, self._limits):
            self._died(now_us, member)
            self._remove(now_us, member, Kind.STOP, reason, Phase.STOPPING)

    def _remove(
        self, now_us: int, member: Member, kind: Kind, reason: str, phase: Phase, action_id: str | None = None
    ) -> None:
        deadline_us = now_us + (self._limits.drain_us if phase is Phase.DRAINING else self._limits.stop_us)
        action_id = action_id or self._next_id()
        member.removal = Removal(action_id, kind, reason, phase, deadline_us, self._limits.stop_us)

    def _scale_in(self, now_us: int, name: str) -> None:
        """Begins the removal of what is too much: what serves nobody first, then the least and latest burdened."""
        counted = self.counted(name)
        externals = len(self.externals(now_us, name))
        surplus = len(counted) + externals - self.targets[name]
        if surplus <= 0:
            return
        reason = f"target {self.targets[name]}, running {len(counted)}, external {externals}"

        def cost(key: str) -> tuple[bool, int, int, str]:
            worker = self.cluster.workers.get(key)
            return worker is not None, burden(worker), self.members[key].instance.age_us, key

        for key in sorted(counted, key=cost)[:surplus]:
            known = key in self.cluster.workers or not self.cluster.fresh(now_us)
            phase = Phase.DRAINING if known else Phase.STOPPING
            self._remove(now_us, self.members[key], Kind.STOP, reason, phase)

    def _step(self, now_us: int, key: str, member: Member) -> Action | None:
        """The next step of an instance's removal, if one is due."""
        removal = member.removal
        if removal is None:
            return None
        worker = self.cluster.workers.get(key)
        if worker is None:
            idle = member.health.absent_for(now_us) >= GONE_US
        else:
            idle = self.cluster.fresh(now_us) and drained(worker)
        kind = removal.step(now_us, idle)
        if kind is None:
            return None
        force = removal.phase is Phase.KILLING
        return Action(removal.action_id, kind, member.instance.group, key, removal.reason, force)

    def _scale_out(self, now_us: int, name: str) -> list[Action]:
        """Fills holes, as far as the maximum and the back-off allow."""
        group, backoff = self.groups[name], self.backoff[name]
        if backoff.waits(now_us) or not self._knows_externals(now_us, group):
            return []
        pending = sum(entry.group == name for entry in self.pending.values())
        present = sum(member.instance.group == name for member in self.members.values())
        counted, externals = len(self.counted(name)), len(self.externals(now_us, name))
        holes = self.targets[name] - externals - counted - pending
        room = group.maximum - present - pending
        reason = f"target {self.targets[name]}, running {counted}, starting {pending}"
        reason += f", external {externals}" if externals else ""
        reason += f", failures in a row {backoff.failures}" if backoff.failures else ""
        return [self._start(name, backoff.failures, reason) for _ in range(min(holes, room))]

    def _knows_externals(self, now_us: int, group: Group) -> bool:
        """Growth waits for a first sight of the cluster where others' workers count."""
        first_us = self.cluster.first_seen_us
        return not group.count_external or (first_us is not None and now_us - first_us >= self._limits.settle_us)

    def _start(self, name: str, restarts: int, reason: str) -> Action:
        action_id = self._next_id()
        action = Action(action_id, Kind.START, name, f"{name}-{action_id}", reason)
        self.pending[action.instance_id] = PendingStart(action_id, name, restarts, None)
        return action

    def _next_id(self) -> str:
        self._actions += 1
        return f"{self._term}-{self._actions}"

    def _intent(self, action_id: str, kind: Kind, group: str, instance_id: str, reason: str) -> Intent:
        return Intent(action_id, kind, group, instance_id, self._limits.visible_within_us, reason)


def removal_kind(removal: Removal) -> Kind:
    """The kind of intent that describes where a removal is."""
    return Kind.DRAIN if removal.phase is Phase.DRAINING else removal.kind
