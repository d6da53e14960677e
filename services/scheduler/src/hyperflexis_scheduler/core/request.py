"""One request as the scheduler sees it: its promise, where it is placed, and every decision taken for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from hyperflexis.common.v1 import slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis_common.attempt import NO_ATTEMPT, Attempt, WorkerKey

if TYPE_CHECKING:
    from hyperflexis_scheduler.core.move import Move
    from hyperflexis_scheduler.core.worker import WorkerState

MAX_DECISIONS = 32
"""Kept per request; the oldest go first."""

BEST_EFFORT_TTFT_US = 1_000_000_000_000
"""The deadline of a request whose promise is broken already: after everything that still has one, and so far away, 11
days, that it is never given up for its age."""
BEST_EFFORT_TPOT_US = 1_000_000
"""At least, and of the same: its decodes hurry nobody's prefill."""


class RouterKey(NamedTuple):
    """One life of one router."""

    router_id: str
    incarnation: int


class Phase(Enum):
    SETTLING = "settling"
    """Resumed under a young leader: a Snapshot may still show an attempt of it."""
    HELD = "held"
    PLACED = "placed"
    LOST = "lost"
    """Its attempt is over; its router has been told, or will find out, and submits again."""
    REFUSED = "refused"
    FINISHED = "finished"
    CANCELLED = "cancelled"

    @property
    def active(self) -> bool:
        return self in (Phase.SETTLING, Phase.HELD, Phase.PLACED)


@dataclass(frozen=True, slots=True)
class Note:
    """One decision, as kept."""

    kind: str
    reason: str
    at_us: int
    numbers: Mapping[str, float]
    worker_id: str
    attempt: Attempt
    after_us: int | None = None
    """Since the request was received; None where nobody has said when that was."""

    def proto(self, now_us: int) -> slo_pb2.Decision:
        return slo_pb2.Decision(
            kind=self.kind,
            reason=self.reason,
            numbers=self.numbers,
            worker_id=self.worker_id,
            age_us=now_us - self.at_us,
            leader_epoch=self.attempt.leader_epoch,
            attempt_seq=self.attempt.seq,
            after_us=self.after_us,
        )


@dataclass(slots=True, eq=False)
class RequestState:
    request_id: str
    phase: Phase = Phase.LOST
    known: bool = False
    """A router has submitted it to this leader; until then only a worker's Snapshot tells of it."""
    router: RouterKey | None = None
    model: str = ""
    tenant: str = ""
    slo: slo_pb2.Slo = field(default_factory=slo_pb2.Slo)
    prompt_tokens: int = 0
    max_tokens: int = 0
    prefix_hashes: bytes = b""
    """Of its prompt's full blocks, until it decodes."""
    cached_tokens: int = 0
    """Of its prompt, that the worker it was given is believed to keep, or to read from a peer."""
    committed: int = 0
    detach_grace_us: int = 0
    arrived_us: int = 0
    router_attempt: Attempt = NO_ATTEMPT
    """The newest attempt its router knows of."""
    router_attempt_failed: bool = False

    attempt: Attempt = NO_ATTEMPT
    worker: WorkerState | None = None
    """Where the current attempt is, or where it finished."""
    base_index: int = 0
    started: bool = False
    """The worker has its Start."""
    revoking: bool = False
    ran: bool = False
    """Its first chunk has run: no longer revocable."""
    decoding: bool = False
    """It has made a token where it is."""
    move: Move | None = None
    """To another worker, where it still runs on the one it has."""
    granted: int = 0
    moves: int = 0
    avoid: WorkerKey | None = None
    """The last worker that could not do it."""
    turn_us: float = 0.0
    """When it is to be prefilled where it was sent, as workers order their queues."""
    gave_up: int = 0
    best_effort: bool = False
    downgraded_from: tuple[str, ...] = ()
    refusal: router_session_pb2.Refused | None = None
    owner_gen: int = 0
    """Of its newest Submit: who owns it. Another owner's Cancel and Done no longer count."""
    done: bool = False
    """Its router has closed its record."""
    placed: Note | None = None
    """Why the current attempt is where it is."""
    notes: deque[Note] = field(default_factory=lambda: deque(maxlen=MAX_DECISIONS))

    def take(self, submit: router_session_pb2.Submit, router: RouterKey, delay_us: int, now_us: int) -> None:
        """The newest Submit wins, and so does the router that sent it."""
        if not self.known:
            self.arrived_us = now_us - submit.age_us - delay_us
        self.known = True
        self.router = router
        self.owner_gen = submit.owner_gen
        self.done = False
        self.model = submit.model
        self.tenant = submit.tenant
        if not self.downgraded_from:
            self.slo = submit.slo
        self.prompt_tokens = submit.prompt_tokens
        self.max_tokens = submit.max_tokens
        self.prefix_hashes = submit.prefix_hashes
        self.committed = submit.committed_tokens
        self.detach_grace_us = submit.detach_grace_us
        self.router_attempt = Attempt.of(submit.last_attempt)
        self.router_attempt_failed = submit.last_attempt_failed

    @property
    def deadline_us(self) -> int:
        """When its first token is due."""
        return self.arrived_us + (BEST_EFFORT_TTFT_US if self.best_effort else self.slo.ttft_us)

    @property
    def tpot_us(self) -> int:
        """Between the others."""
        return max(self.slo.tpot_us, BEST_EFFORT_TPOT_US) if self.best_effort else self.slo.tpot_us

    @property
    def prefill_tokens(self) -> int:
        """What a worker must compute before the next token."""
        return self.prompt_tokens + self.committed

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.max_tokens

    def promised_slo(self) -> slo_pb2.Slo:
        """What the worker is asked to keep."""
        if not self.best_effort:
            return self.slo
        slo = slo_pb2.Slo()
        slo.CopyFrom(self.slo)
        slo.ttft_us = BEST_EFFORT_TTFT_US
        slo.tpot_us = self.tpot_us
        return slo

    def note(
        self, kind: str, reason: str, at_us: int, numbers: Mapping[str, float] | None = None, worker_id: str = ""
    ) -> Note:
        """`worker_id`: the worker it is about, where that is not the one that has the request."""
        worker_id = worker_id or (self.worker.key.worker_id if self.worker is not None else "")
        after_us = at_us - self.arrived_us if self.known else None
        note = Note(kind, reason, at_us, numbers or {}, worker_id, self.attempt, after_us)
        self.notes.append(note)
        return note
