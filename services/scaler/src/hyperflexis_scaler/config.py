"""The scaler's settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from hyperflexis_common.config import RedisSettings, Section, ServiceSettings
from hyperflexis_scaler.core.group import Group, Limits


class GroupSettings(Section):
    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")
    """Part of its workers' ids: small letters, digits, dashes."""
    model: str = Field(min_length=1)
    """The model its workers serve."""
    target: int = Field(default=1, ge=0)
    """Workers to keep alive, until SetTarget says otherwise."""
    max: int = Field(default=8, ge=0)
    """Instances at most, those that come and go included."""
    count_external: bool = True
    """Workers of this model that somebody else runs count towards the target."""
    args: list[str] = []
    """Further flags for its workers, such as ["--engine", "modelled"]."""
    env: dict[str, str] = {}
    """Further environment for its workers."""

    @model_validator(mode="after")
    def _target_within_max(self) -> GroupSettings:
        if self.target > self.max:
            raise ValueError(f"group {self.name!r}: target {self.target} is over max {self.max}")
        return self


class ScalerSettings(ServiceSettings):
    """Settings of the scaler."""

    section: ClassVar[str] = "scaler"

    listen: str = "127.0.0.1:50054"
    """host:port of the gRPC server; port 0 = any free one."""
    advertise: str = ""
    """host or host:port that others dial; empty = the one listened on."""
    redis: RedisSettings = RedisSettings()
    """Where the lease, the intents and the targets live."""
    schedulers: list[str] = ["127.0.0.1:50052"]
    """Schedulers of the cell, leader and standbys, in any order."""
    cell: str = Field(default="default", min_length=1)
    """Name of the cell; tags its workers."""
    groups: list[GroupSettings] = []
    """What should run."""
    provider: Literal["process"] = "process"
    """What runs the workers: processes of this machine."""
    worker_command: list[str] = [sys.executable, "-m", "hyperflexis_worker"]
    """Starts a worker; flags are added."""
    worker_config: Path | None = None
    """--config of the workers; default: the file this scaler reads."""
    worker_listen: str = "127.0.0.1:0"
    """--listen of the workers; the port must be 0 where a group has more than one."""
    state_dir: Path = Path(".hyperflexis/scaler")
    """Records of the running processes. Cell and state_dir together name the fleet on this machine."""
    log_dir: Path = Path(".hyperflexis/logs")
    """One log per worker; the newest hundred are kept."""
    on_stop: Literal["stop_workers", "leave"] = "stop_workers"
    """What a leading scaler does with its workers when it is stopped. Use leave where another takes over."""
    tick_ms: int = Field(default=500, ge=10, le=10_000)
    """Between two looks at the fleet."""
    start_timeout_s: float = Field(default=120, gt=0)
    """A worker that has not joined the cluster after this is replaced."""
    hung_timeout_s: float = Field(default=30, gt=0)
    """A worker that hangs, or lives but left the cluster, is replaced after this."""
    drain_timeout_s: float = Field(default=60, ge=0)
    """For running requests to end or move before a worker is stopped."""
    stop_timeout_s: float = Field(default=10, ge=0)
    """From SIGTERM to SIGKILL."""
    lease_ms: int = Field(default=3_000, ge=500)
    """Another scaler takes over when a leader was silent this long; renewed three times as often."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Prometheus port; 0 = off."""
    stop_grace_s: float = Field(default=5.0, ge=0)
    """On SIGTERM: for RPCs to end. Stopping workers has its own limit, stop_timeout_s."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines written."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> ScalerSettings:
        names = [group.name for group in self.groups]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two groups are named {name!r}")
        return self

    def core_groups(self) -> list[Group]:
        return [Group(g.name, g.model, g.target, g.max, g.count_external) for g in self.groups]

    def limits(self, visible_within_us: int) -> Limits:
        """The waits of the core, in microseconds."""
        return Limits(
            visible_within_us=visible_within_us,
            start_us=int(self.start_timeout_s * 1e6),
            hung_us=int(self.hung_timeout_s * 1e6),
            drain_us=int(self.drain_timeout_s * 1e6),
            stop_us=int(self.stop_timeout_s * 1e6),
        )
