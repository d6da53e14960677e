"""Who leads: the state machine of docs/protocol.md, "Fencing and leadership". No Redis here, only its answers.

The lease orders leaders, it does not keep them alive: a leader that cannot reach Redis goes on, and so a
candidate takes over only when Redis, reachable for a whole lease, has seen no renewal in all that time *and*
the last known leader does not answer a direct probe. Two leaders at once are possible under partitions; two
with the same epoch are not, because Redis counts the epochs, and peers obey the higher one.
"""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.common.v1 import identity_pb2


@dataclass(frozen=True, slots=True)
class Timing:
    lease_us: int = 3_000_000
    renew_us: int = 1_000_000
    observe_us: int = 250_000
    """How often a standby looks."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The `leader` key. An empty leader_id: released by its holder, free for anybody."""

    leader_id: str
    epoch: int
    address: str
    remaining_us: int = 0


@dataclass(frozen=True, slots=True)
class Observe:
    """Read the lease; answer with `observed`."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask GetLeader at this address; answer with `probed`."""

    ticket: int
    address: str


@dataclass(frozen=True, slots=True)
class Acquire:
    """Take the lease if it is free, with an epoch above `floor` and above Redis' counter; then `acquired`."""

    ticket: int
    floor: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Prolong our lease, or write it again; answer with `renewed`."""

    ticket: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Lead:
    fence: identity_pb2.Fence


@dataclass(frozen=True, slots=True)
class StepDown:
    """No longer the leader: end the core, and release the lease where it is still ours."""

    reason: str
    epoch: int


Output = Observe | Probe | Acquire | Renew | Lead | StepDown


class Election:
    """Feed it a tick each 100 ms or so, and every answer. At most one question is open at a time; answers to
    older questions are ignored. Every question must be answered, also where Redis did not: none is asked before."""

    def __init__(self, leader_id: str, timing: Timing, now_us: int) -> None:
        self.leader_id = leader_id
        self.epoch = 0
        """Ours while leading, else 0."""
        self.last_known: Lease | None = None
        """The newest lease of another leader."""
        self._timing = timing
        self._floor = 0
        self._ticket = 0
        self._asked: Output | None = None
        self._asked_us = now_us
        self._next_us = now_us
        self._ticked_us = now_us
        self._free_since_us: int | None = None
        self._verify_by_us: int | None = None

    @property
    def leading(self) -> bool:
        return self.epoch > 0

    def may_act(self, now_us: int) -> bool:
        """Leads, and has not slept longer than a lease since: a sleeper must see its lease again first."""
        return self.leading and self._verify_by_us is None and now_us - self._ticked_us <= self._timing.lease_us

    def tick(self, now_us: int) -> list[Output]:
        gap_us = now_us - self._ticked_us
        self._ticked_us = now_us
        if gap_us > self._timing.lease_us:
            # What was asked before the sleep is answered by news from before it.
            self._asked = None
            self._free_since_us = None
            if self.leading:
                self._verify_by_us = now_us + self._timing.lease_us
                return [self._ask(Renew(self._take_ticket(), self.epoch), now_us)]
        if self._verify_by_us is not None and now_us >= self._verify_by_us:
            return self._step_down("slept longer than its lease, and Redis does not tell who leads")
        if self._asked is not None or now_us < self._next_us:
            return []
        if self.leading:
            self._next_us = now_us + self._timing.renew_us
            return [self._ask(Renew(self._take_ticket(), self.epoch), now_us)]
        self._next_us = now_us + self._timing.observe_us
        return [self._ask(Observe(self._take_ticket()), now_us)]

    def observed(self, ticket: int, reachable: bool, lease: Lease | None, counter: int, now_us: int) -> list[Output]:
        """What Redis holds: the lease if there is one, and the counter of epochs."""
        if not self._answers(ticket) or self.leading:
            return []
        if not reachable:
            self._free_since_us = None
            return []
        self._floor = max(self._floor, counter)
        if lease is not None and not lease.leader_id:
            return [self._ask(Acquire(self._take_ticket(), self._floor), now_us)]
        self._note_holder(lease, now_us)
        if lease is not None and lease.leader_id != self.leader_id:
            return []
        if self._free_since_us is None or now_us - self._free_since_us < self._timing.lease_us:
            return []
        if self.last_known is None:
            return [self._ask(Acquire(self._take_ticket(), self._floor), now_us)]
        return [self._ask(Probe(self._take_ticket(), self.last_known.address), now_us)]

    def probed(self, ticket: int, leads: bool, now_us: int) -> list[Output]:
        """Does the last known leader answer that it leads?"""
        if not self._answers(ticket) or self.leading:
            return []
        if leads:
            self._free_since_us = now_us
            return []
        return [self._ask(Acquire(self._take_ticket(), self._floor), now_us)]

    def acquired(self, ticket: int, epoch: int, holder: Lease | None, now_us: int) -> list[Output]:
        """`epoch` > 0 where we hold the lease now, else who holds it; neither where Redis did not answer."""
        asked_us = self._asked_us
        if not self._answers(ticket) or self.leading:
            return []
        if not epoch:
            if holder is not None:
                self._note_holder(holder, now_us)
            else:
                self._free_since_us = None
            return []
        self._floor = max(self._floor, epoch)
        if now_us - asked_us >= self._timing.lease_us:
            # So late that the lease is over; its epoch is used up.
            return []
        self.epoch = epoch
        self._verify_by_us = None
        self._next_us = now_us + self._timing.renew_us
        return [Lead(identity_pb2.Fence(epoch=epoch, leader_id=self.leader_id))]

    def renewed(self, ticket: int, reachable: bool, held: bool, holder: Lease | None, now_us: int) -> list[Output]:
        """`held`: the lease is ours again. Else `holder` has a higher epoch, or one has been granted since."""
        if not self._answers(ticket) or not self.leading:
            return []
        if not reachable:
            # Sessions, not missing keys, mean death: lead on. After a sleep: ask again.
            return []
        if held:
            self._verify_by_us = None
            return []
        if holder is not None:
            self._note_holder(holder, now_us)
        return self._step_down("a later leader holds the lease")

    def heard(self, epoch: int, now_us: int) -> list[Output]:
        """A peer has obeyed this epoch, and it is not ours."""
        self._floor = max(self._floor, epoch)
        if self.leading and epoch >= self.epoch:
            return self._step_down(f"a peer has seen epoch {epoch}")
        return []

    def _note_holder(self, lease: Lease | None, now_us: int) -> None:
        """Free counts from the last renewal, not from the expiry: the key outlives it by exactly a lease."""
        if lease is None:
            if self._free_since_us is None:
                self._free_since_us = now_us
            return
        self._floor = max(self._floor, lease.epoch)
        if lease.leader_id and lease.leader_id != self.leader_id:
            self.last_known = lease
        renewed_us = now_us - max(0, self._timing.lease_us - lease.remaining_us)
        self._free_since_us = now_us if self._free_since_us is None else max(self._free_since_us, renewed_us)

    def _step_down(self, reason: str) -> list[Output]:
        epoch, self.epoch = self.epoch, 0
        self._asked = None
        self._verify_by_us = None
        self._free_since_us = None
        return [StepDown(reason, epoch)]

    def _take_ticket(self) -> int:
        self._ticket += 1
        return self._ticket

    def _ask(self, question: Observe | Probe | Acquire | Renew, now_us: int) -> Output:
        self._asked = question
        self._asked_us = now_us
        return question

    def _answers(self, ticket: int) -> bool:
        if self._asked is None or getattr(self._asked, "ticket", 0) != ticket:
            return False
        self._asked = None
        return True
