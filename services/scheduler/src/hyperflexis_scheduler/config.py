"""The scheduler's settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from hyperflexis_common.config import RedisSettings, ServiceSettings, TierSettings
from hyperflexis_common.promise import check_downgrades, slo_of
from hyperflexis_scheduler.core.election import Timing
from hyperflexis_scheduler.core.rules import Rules


class SchedulerSettings(ServiceSettings):
    """Settings of the scheduler."""

    section: ClassVar[str] = "scheduler"

    redis: RedisSettings = RedisSettings()
    tiers: list[TierSettings] = []
    """What a downgrade may fall to."""
    listen: str = "127.0.0.1:50052"
    """host:port; port 0 = any free one."""
    advertise: str = ""
    """What peers dial, if not the address listened on; ":port" keeps the host."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Prometheus; 0 = off."""
    instance_id: str = ""
    """Name of this process in leases and logs; default: drawn at start."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    policy: Literal["hyperflexis", "round_robin", "least_requests", "jsq"] = "hyperflexis"
    """How a worker is chosen."""
    prefix_aware: bool = True
    """A worker that keeps the beginning of a prompt counts as having that much less to do."""
    prefix_pulls: bool = True
    """What a peer keeps of a prompt is read from it where that takes less than half as long as to compute it; needs
    prefix_aware. Only over links as fast as that: gRPC is not, beside a GPU."""
    roles: Literal["fixed", "adaptive"] = "fixed"
    """Who may be sent what. fixed: as workers and operators say; adaptive: by the load, whatever they say."""
    lease_ms: int = Field(default=3_000, ge=300, le=60_000)
    """The leader's lease; it is renewed each third of it. The same on every scheduler of a cell."""
    probe_timeout_ms: int = Field(default=500, ge=50, le=10_000)
    """Limit for the direct probe of the last known leader."""
    hold_limit: int = Field(default=10_000, ge=0)
    """Requests that may wait where there is no worker."""
    hold_seconds: float = Field(default=30.0, gt=0)
    """How long they wait before they are refused."""
    outbox_limit: int = Field(default=65_536, ge=16)
    """Messages waiting for one slow peer before its session is dropped."""
    stop_grace_seconds: float = Field(default=5.0, ge=0)

    @field_validator("tiers")
    @classmethod
    def downgrades_exist(cls, tiers: list[TierSettings]) -> list[TierSettings]:
        check_downgrades(tiers)
        return tiers

    def rules(self) -> Rules:
        return Rules(
            tiers={tier.name: slo_of(tier) for tier in self.tiers},
            prefix_aware=self.prefix_aware,
            prefix_pulls=self.prefix_pulls,
            adaptive_roles=self.roles == "adaptive",
            hold_limit=self.hold_limit,
            hold_us=int(self.hold_seconds * 1e6),
        )

    def timing(self) -> Timing:
        lease_us = self.lease_ms * 1_000
        return Timing(lease_us=lease_us, renew_us=lease_us // 3, observe_us=lease_us // 12)
