"""The scaler's metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

from hyperflexis.scaler.v1 import scaler_service_pb2

TARGET = Gauge("hyperflexis_scaler_target", "Workers that should run.", ["group"])
INSTANCES = Gauge("hyperflexis_scaler_instances", "Workers by state.", ["group", "state"])
CRASH_LOOP = Gauge("hyperflexis_scaler_crash_loop", "1 while a group's workers die soon after their start.", ["group"])
LEADS = Gauge("hyperflexis_scaler_leads", "1 while this scaler leads.")
ACTIONS = Counter("hyperflexis_scaler_actions", "Actions by kind and outcome.", ["kind", "outcome"])

STATES = ("starting", "ready", "absent", "hung", "draining", "stopping", "ended", "external")


def show_fleet(fleet: scaler_service_pb2.GetFleetResponse) -> None:
    """Sets the gauges to what the fleet looks like."""
    LEADS.set(fleet.is_leader)
    for group in fleet.groups:
        TARGET.labels(group.name).set(group.target)
        states = [instance.state for instance in fleet.instances if instance.group == group.name]
        for state in STATES:
            INSTANCES.labels(group.name, state).set(states.count(state))
