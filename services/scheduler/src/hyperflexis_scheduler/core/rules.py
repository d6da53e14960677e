"""The numbers of docs/protocol.md, and the limits that keep every map and queue bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hyperflexis.common.v1 import slo_pb2


@dataclass(frozen=True, slots=True)
class Rules:
    """Durations are microseconds."""

    tiers: Mapping[str, slo_pb2.Slo] = field(default_factory=dict)
    """By name: what a downgrade falls to."""
    grace_us: int = 500_000
    """A broken worker session may come back within this without consequence."""
    silence_us: int = 3_000_000
    """An open session without a message for this long is broken."""
    ping_us: int = 1_000_000
    report_interval_us: int = 1_000_000
    """Workers report at least this often."""
    hung_us: int = 2_000_000
    """No step for this long, with work, is a hang ..."""
    hung_steps: float = 10.0
    """... if it is also longer than this many predicted steps."""
    command_lost_us: int = 2_000_000
    """A command that reports do not count as applied for this long was lost."""
    resume_wait_us: int = 2_000_000
    """A new leader waits at most this long for the known workers' Snapshots before it places a resume."""
    known_us: int = 10_000_000
    """Workers that a leader had this long ago or less are expected back by the next one, which is young as long."""
    remembered_us: int = 3_600_000_000
    """How long the lives of a worker id that nobody has are remembered."""
    stall_us: int = 1_000_000
    """Ticks further apart than this mean that this process slept: nobody else is blamed for it."""
    prefix_aware: bool = True
    """Placement counts on what workers keep of a prompt."""
    prefix_pulls: bool = True
    """A prefix that a peer keeps is read from it where that is clearly quicker than to compute it."""
    pull_tokens: int = 512
    """Fewer are computed at once."""
    adaptive_roles: bool = False
    """How many workers only prefill follows the load."""
    max_attempts: int = 16
    max_moves: int = 3
    """Times one request may be revoked for a better place (a drain is not counted)."""
    revoke_period_us: int = 100_000
    revokes_per_round: int = 16
    hold_limit: int = 10_000
    hold_us: int = 30_000_000
    hold_burst: int = 256
    """Held requests placed per event: a long queue must not stall the loop when a worker turns up."""
    active_limit: int = 200_000
    """Requests held or placed at once; beyond it new ones are refused."""
    retention_us: int = 120_000_000
    """How long a request is remembered after it ended."""
    retained_limit: int = 100_000
    actions_limit: int = 10_000
    lives_limit: int = 10_000
    """Worker ids remembered that nobody has."""
    retry_after_us: int = 1_000_000
    """Least hint in a refusal that may be retried."""
