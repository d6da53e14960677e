"""What the engine and other workers answer in the course of a move. Numbers repeat those of the questions."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.worker.v1 import worker_service_pb2
from hyperflexis_common.attempt import Attempt


@dataclass(frozen=True, slots=True)
class ExportAsked:
    """Another worker wants what a request has here; AnswerExport answers it."""

    number: int
    ask: worker_service_pb2.ExportKvRequest


@dataclass(frozen=True, slots=True)
class PrefixAsked:
    """Another worker wants what is cached here of a prompt; AnswerExport answers it."""

    number: int
    ask: worker_service_pb2.ExportPrefixRequest


@dataclass(frozen=True, slots=True)
class ReleaseAsked:
    """Another worker gives a lease back; AnswerRelease answers it, or the engine does."""

    number: int
    lease_id: int


@dataclass(frozen=True, slots=True)
class Exported:
    """What the engine leased, or why it did not."""

    number: int
    engine: str
    """Its name."""
    lease_id: int = 0
    blocks: tuple[int, ...] = ()
    generations: tuple[int, ...] = ()
    computed: int = 0
    output: bytes = b""
    error: str = ""
    full: bool = False
    """Too much of the pool is leased."""


@dataclass(frozen=True, slots=True)
class Reserved:
    request_id: str
    attempt: Attempt
    ok: bool
    cached: int = 0
    """Of a prefix, blocks that were here."""


@dataclass(frozen=True, slots=True)
class Linked:
    """A link to that engine is there; without a transport: it is not, or not any more."""

    engine: str
    status: movement_pb2.LinkStatus


@dataclass(frozen=True, slots=True)
class Pulled:
    number: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class PeerExported:
    """None where the peer refused or could not be asked; `error` says why."""

    number: int
    response: worker_service_pb2.ExportKvResponse | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class PeerPrefix:
    number: int
    response: worker_service_pb2.ExportPrefixResponse | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class PeerLinked:
    number: int
    response: worker_service_pb2.LinkResponse | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class PeerReleased:
    number: int
    held: bool
    error: str = ""


MoveEvent = (
    ExportAsked
    | PrefixAsked
    | ReleaseAsked
    | Exported
    | Reserved
    | Linked
    | Pulled
    | PeerExported
    | PeerPrefix
    | PeerLinked
    | PeerReleased
)
