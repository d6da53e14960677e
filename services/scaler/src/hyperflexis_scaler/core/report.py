"""The fleet as GetFleet shows it."""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2, identity_pb2
from hyperflexis.scaler.v1 import scaler_service_pb2
from hyperflexis_scaler.core.fleet import FleetCore
from hyperflexis_scaler.core.instance import Member
from hyperflexis_scaler.core.removal import Phase


def state_of(core: FleetCore, member: Member) -> str:
    """starting, ready, absent (left the cluster), hung, draining, stopping or ended."""
    if not member.instance.alive:
        return "ended"
    if member.removal is not None:
        return "draining" if member.removal.phase is Phase.DRAINING else "stopping"
    worker = core.cluster.workers.get(member.instance.instance_id)
    if worker is None:
        return "absent" if member.health.joined else "starting"
    if worker.hung:
        return "hung"
    return "ready" if worker.readiness == capability_pb2.READINESS_READY else "starting"


def instances_report(core: FleetCore, now_us: int) -> list[scaler_service_pb2.Instance]:
    """Ours, then starts on their way, then others' workers that count ("external")."""
    rows = [
        scaler_service_pb2.Instance(
            instance_id=key,
            group=member.instance.group,
            worker_id=key,
            state=state_of(core, member),
            age_us=member.instance.age_us,
            restarts=member.restarts,
            action_id=member.instance.action_id,
        )
        for key, member in core.members.items()
    ]
    rows += [
        scaler_service_pb2.Instance(
            instance_id=key,
            group=pending.group,
            worker_id=key,
            state="starting",
            restarts=pending.restarts,
            action_id=pending.action_id,
        )
        for key, pending in core.pending.items()
    ]
    rows += [
        scaler_service_pb2.Instance(group=name, worker_id=worker_id, state="external")
        for name in core.groups
        for worker_id in core.externals(now_us, name)
    ]
    return rows


def group_report(core: FleetCore, name: str, instances: list[scaler_service_pb2.Instance]) -> scaler_service_pb2.Group:
    """One group's numbers; `ready` includes others' workers, as the target does."""
    states = [instance.state for instance in instances if instance.group == name]
    return scaler_service_pb2.Group(
        name=name,
        model=core.groups[name].model,
        target=core.targets[name],
        ready=states.count("ready") + states.count("external"),
        starting=states.count("starting"),
        draining=states.count("draining") + states.count("stopping"),
        max=core.groups[name].maximum,
    )


def fleet_report(
    core: FleetCore, now_us: int, fence: identity_pb2.Fence, is_leader: bool
) -> scaler_service_pb2.GetFleetResponse:
    instances = instances_report(core, now_us)
    return scaler_service_pb2.GetFleetResponse(
        groups=[group_report(core, name, instances) for name in core.groups],
        instances=instances,
        recent_actions=[
            scaler_service_pb2.FleetAction(
                action_id=done.action.action_id,
                kind=done.action.kind,
                group=done.action.group,
                instance_id=done.action.instance_id,
                reason=done.action.reason,
                age_us=now_us - done.at_us,
                outcome=f"{done.outcome}: {done.message}" if done.message else done.outcome,
            )
            for done in core.history
        ],
        fence=fence,
        is_leader=is_leader,
    )
