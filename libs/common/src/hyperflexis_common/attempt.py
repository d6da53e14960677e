"""The order of attempts (docs/protocol.md, "Attempts")."""

from __future__ import annotations

from typing import NamedTuple

from hyperflexis.common.v1 import identity_pb2


class Attempt(NamedTuple):
    """One placement of one request; a later one compares greater, lexicographically."""

    leader_epoch: int
    seq: int

    @classmethod
    def of(cls, message: identity_pb2.Attempt) -> Attempt:
        return cls(message.leader_epoch, message.seq)

    def proto(self) -> identity_pb2.Attempt:
        return identity_pb2.Attempt(leader_epoch=self.leader_epoch, seq=self.seq)

    def __str__(self) -> str:
        return f"{self.leader_epoch}.{self.seq}"


NO_ATTEMPT = Attempt(0, 0)
"""Below every granted attempt: epochs start at 1."""


class WorkerKey(NamedTuple):
    """One life of one worker."""

    worker_id: str
    incarnation: int

    @classmethod
    def of(cls, message: identity_pb2.WorkerIdentity) -> WorkerKey:
        return cls(message.worker_id, message.incarnation)

    def proto(self) -> identity_pb2.WorkerIdentity:
        return identity_pb2.WorkerIdentity(worker_id=self.worker_id, incarnation=self.incarnation)

    def __str__(self) -> str:
        return f"{self.worker_id}:{self.incarnation:016x}"
