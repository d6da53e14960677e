"""What the worker's core wants done. Those with a `number` are answered by an event that repeats it."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2, worker_service_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.steps.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ToScheduler:
    message: worker_session_pb2.WorkerSessionRequest


@dataclass(frozen=True, slots=True)
class ToFeed:
    feed: int
    message: token_feed_pb2.TokenFeedResponse


# --- to the engine ---------------------------------------------------------------------------------------


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
class ExportCache:
    """Lease the blocks that the attempt has filled from `from_block` on; `final` takes it out of the engine."""

    number: int
    request_id: str
    attempt: Attempt
    from_block: int
    lease_id: int
    lease_us: int
    final: bool


@dataclass(frozen=True, slots=True)
class ExportPrefix:
    """Lease what is cached of a prompt."""

    number: int
    hashes: bytes
    lease_us: int


@dataclass(frozen=True, slots=True)
class EndLease:
    """`number` 0: nobody waits for the answer."""

    lease_id: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class ReserveBlocks:
    request_id: str
    attempt: Attempt
    tokens: int


@dataclass(frozen=True, slots=True)
class ReservePrefix:
    """Blocks for the beginning of a prompt, what is cached of it among them; answered by `reserved`."""

    request_id: str
    attempt: Attempt
    hashes: bytes


@dataclass(frozen=True, slots=True)
class KeepPrefix:
    """Ends that reservation: what is in it may be found by these hashes."""

    request_id: str
    attempt: Attempt
    hashes: bytes


@dataclass(frozen=True, slots=True)
class UnreserveBlocks:
    request_id: str
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class LinkEngine:
    """Make it able to read from that engine's pool; answered by `linked`."""

    engine: str
    metadata: bytes


@dataclass(frozen=True, slots=True)
class PullBlocks:
    """Read a peer's leased blocks into the reservation, from its block `first_block` on."""

    number: int
    request_id: str
    attempt: Attempt
    engine: str
    lease_id: int
    first_block: int
    blocks: Rows[int]
    within_us: int
    last: bool
    """The request stands still until they are here."""


@dataclass(frozen=True, slots=True)
class AttachSequence:
    """Its first `computed` tokens are in its reservation: it goes on from there."""

    number: int
    sequence: Sequence
    computed: int


# --- to another worker -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskExport:
    number: int
    address: str
    request: worker_service_pb2.ExportKvRequest


@dataclass(frozen=True, slots=True)
class AskPrefix:
    number: int
    address: str
    request: worker_service_pb2.ExportPrefixRequest


@dataclass(frozen=True, slots=True)
class AskLink:
    number: int
    address: str


@dataclass(frozen=True, slots=True)
class AskRelease:
    """`number` 0: nobody waits for the answer."""

    number: int
    address: str
    lease_id: int


@dataclass(frozen=True, slots=True)
class AnswerExport:
    """To the worker that asked under this number of the shell's; without a response, `error` says why."""

    number: int
    response: worker_service_pb2.ExportKvResponse | worker_service_pb2.ExportPrefixResponse | None
    error: str = ""
    full: bool = False
    """It is here, but too much of the pool is leased."""


@dataclass(frozen=True, slots=True)
class AnswerRelease:
    """As AnswerExport."""

    number: int
    held: bool


# --- to this process -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DropScheduler:
    """End the session; a new one begins with a Snapshot."""

    reason: str


@dataclass(frozen=True, slots=True)
class Leave:
    """This process has no business here any more: stop, exit status 1."""

    reason: str


Effect = (
    ToScheduler
    | ToFeed
    | AddSequence
    | DropSequence
    | RevokeSequence
    | ExportCache
    | ExportPrefix
    | EndLease
    | ReserveBlocks
    | ReservePrefix
    | KeepPrefix
    | UnreserveBlocks
    | LinkEngine
    | PullBlocks
    | AttachSequence
    | AskExport
    | AskPrefix
    | AskLink
    | AskRelease
    | AnswerExport
    | AnswerRelease
    | DropScheduler
    | Leave
)
