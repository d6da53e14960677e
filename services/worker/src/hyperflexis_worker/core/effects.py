"""What the worker's core wants done."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ToScheduler:
    message: worker_session_pb2.WorkerSessionRequest


@dataclass(frozen=True, slots=True)
class ToFeed:
    feed: int
    message: token_feed_pb2.TokenFeedResponse


@dataclass(frozen=True, slots=True)
class AddSequence:
    """The engine takes this in; `number` counts adds over the life of this core."""

    number: int
    sequence: Sequence


@dataclass(frozen=True, slots=True)
class DropSequence:
    request_id: str
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class RevokeSequence:
    """Drop it if it has not started; the engine answers `revoked`."""

    request_id: str
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class DropScheduler:
    """End the session; a new one begins with a Snapshot."""

    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """This process has no business here any more: stop, exit status 1."""

    reason: str


Effect = ToScheduler | ToFeed | AddSequence | DropSequence | RevokeSequence | DropScheduler | Leave
