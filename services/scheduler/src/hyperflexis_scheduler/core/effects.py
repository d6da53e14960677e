"""What the core wants done. The shell does it, in this order."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.scheduler.v1 import router_session_pb2, worker_session_pb2


@dataclass(frozen=True, slots=True)
class ToRouter:
    session: int
    message: router_session_pb2.RouterSessionResponse


@dataclass(frozen=True, slots=True)
class ToWorker:
    session: int
    message: worker_session_pb2.WorkerSessionResponse


@dataclass(frozen=True, slots=True)
class CloseSession:
    """End the stream after what was sent before. Session numbers are unique over routers and workers."""

    session: int
    reason: str
    permanent: bool = False
    """The peer must change before it can come back."""


@dataclass(frozen=True, slots=True)
class HigherEpoch:
    """Somebody has obeyed a leader that is not this one: step down, and stand again only above `epoch`."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Remember:
    """Write the memory down now: what has just happened must not be forgotten with this leader."""


@dataclass(frozen=True, slots=True)
class TpotTooShort:
    """For whoever runs this: a tier promises what no step of such a worker can keep. Told once a tier and model."""

    tier: str
    model: str
    tpot_us: int
    empty_step_us: float
    """A step with nothing in it."""


Effect = ToRouter | ToWorker | CloseSession | HigherEpoch | Remember | TpotTooShort
