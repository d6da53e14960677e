"""The caches of an engine as its shell may ask for them: exported under leases, reserved, pulled, attached.

Called between two steps only, so a sequence stands still while it is looked at here.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hyperflexis_common import tokens as packing
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.clock import Clock
from hyperflexis_worker.engine import frames
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.engine.cached_prefixes import CachedPrefixes
from hyperflexis_worker.kv.links import PROBE_LEASE
from hyperflexis_worker.kv.transfers import Forget, MoverFailed, News, Orders, Read, ReadOver
from hyperflexis_worker.kv.transport import Storage
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.holds import Holds
from hyperflexis_worker.steps.reservations import Reservations
from hyperflexis_worker.steps.sequence import Sequence
from hyperflexis_worker.steps.step_loop import StepLoop

WEDGED_AFTER_US = 10_000_000
"""A transfer that is not over so long after its time never will be."""


@dataclass(slots=True)
class _Pulling:
    pull: kv.Pull
    local: tuple[int, ...]
    due_us: int
    told: bool = False
    """Pulled has been sent; only its quarantine is left."""

    @property
    def attempt(self) -> Attempt:
        return Attempt(self.pull.leader_epoch, self.pull.seq)


class Caches:
    """Leases, reservations and transfers of one engine. `tell` gets what the shell is to hear.

    `detached` is called for a sequence that has left for elsewhere. Without a mover nothing moves, and the shell is
    told so.
    """

    def __init__(
        self,
        pool: BlockPool,
        loop: StepLoop,
        storage: Storage,
        mover: Orders | None,
        clock: Clock,
        tell: Callable[[frames.FromEngine], None],
        detached: Callable[[Sequence], None],
    ) -> None:
        self._pool = pool
        self._loop = loop
        self._storage = storage
        self._mover = mover
        self._clock = clock
        self._tell = tell
        self._detached = detached
        # A peer asks for a lease by its id, at an address where another engine may live by now: it must not find one.
        self.holds = Holds(pool, first_id=1 + secrets.randbits(62))
        self.reservations = Reservations(pool)
        self._prefixes = CachedPrefixes(pool, self.holds, self.reservations)
        self._pulling: dict[int, _Pulling] = {}
        self._wedged = False

    def __bool__(self) -> bool:
        """Blocks are held by others than sequences."""
        return bool(self.holds or self.reservations)

    @property
    def held(self) -> Iterable[int]:
        """Every block once for each owner here."""
        yield from self.holds.blocks
        yield from self.reservations.blocks

    def wait_s(self, limit_s: float) -> float:
        """How long nothing has to be done here, at most `limit_s`."""
        ends = [pulling.due_us for pulling in self._pulling.values() if not pulling.told]
        if (next_us := self.holds.next_end_us) is not None and not self._wedged:
            ends.append(next_us)
        if not ends:
            return limit_s
        return min(max(min(ends) - self._clock.now_us(), 0) / 1e6, limit_s)

    def take(self, command: kv.CacheCommand) -> None:
        match command:
            case kv.Export():
                self._tell(self._export(command))
            case kv.ExportPrefix(number) if self._mover is None:
                self._tell(kv.Exported(number, error=self._refusal))
            case kv.ExportPrefix():
                self._tell(self._prefixes.export(command, self._clock.now_us()))
            case kv.ReleaseLease(number, lease_id):
                self._tell(kv.Released(number, self.holds.release(lease_id)))
            case kv.ReadBlocks():
                self._tell(self._read(command))
            case kv.Reserve():
                self._reserve(command)
            case kv.ReservePrefix():
                self._tell(self._prefixes.reserve(command, self._spare))
            case kv.KeepPrefix(request_id, leader_epoch, seq):
                self._prefixes.keep(command, self.holds.quarantined)
                self._forget_pulls(request_id, Attempt(leader_epoch, seq))
            case kv.Pull():
                self._pull(command)
            case kv.Unreserve(request_id, leader_epoch, seq):
                self.reservations.release(request_id, Attempt(leader_epoch, seq))
                self._forget_pulls(request_id, Attempt(leader_epoch, seq))
            case kv.LinkPeer():
                if self._mover is None or not self._mover.order(command):
                    self._tell(kv.Linked(command.peer, error=self._refusal))
            case kv.FetchedBytes():
                if self._mover is not None:
                    self._mover.order(command)

    def attach(self, sequence: Sequence, computed: int) -> None:
        """The sequence goes on from its reservation; where nothing of it is there, it waits to be computed like others.
        Raises ValueError."""
        key = sequence.request_id, sequence.attempt
        blocks, usable = self.reservations.take(*key, computed, self.holds.quarantined)
        self._forget_pulls(*key)
        try:
            if usable:
                self._loop.attach(sequence, blocks, min(usable, sequence.num_tokens - 1))
            else:
                self._loop.add(sequence)
                self._pool.release(blocks)
        except ValueError:
            self._pool.release(blocks)
            raise

    def dropped(self, request_id: str, attempt: Attempt) -> None:
        """The request is no longer wanted here, in this attempt or an older one."""
        for held in self.reservations.release_until(request_id, attempt):
            self._forget_pulls(request_id, held)

    def turn(self) -> bool:
        """What has come, what is over. True where something changed."""
        now_us = self._clock.now_us()
        changed = bool(self.holds.expire(now_us))
        for pulling in self._pulling.values():
            if not pulling.told and pulling.due_us <= now_us:
                self._pulled(pulling, error=f"not read within {pulling.pull.within_us} us")
        if self._mover is not None:
            for news in self._mover.news():
                changed = True
                self._heard(news)
        if not self._wedged and (overdue := self.holds.overdue(now_us)):
            self._wedged = True
            peers = {self._pulling[one.transfer_id].pull.peer for one in overdue if one.transfer_id in self._pulling}
            self._tell(kv.Wedged(f"{len(overdue)} transfers are not over (from {', '.join(sorted(peers))})"))
        return changed

    def close(self) -> None:
        if self._mover is not None:
            self._mover.close()

    # --- the source's side -------------------------------------------------------------------------------

    def _export(self, command: kv.Export) -> kv.Exported:
        number = command.number
        sequence = self._loop.find(command.request_id, Attempt(command.leader_epoch, command.seq))
        if self._mover is None or sequence is None:
            return kv.Exported(number, error="not here" if self._mover else self._refusal)
        end = len(sequence.blocks) if command.final else sequence.computed // self._pool.block_tokens
        used = min(end, self._pool.blocks_for(sequence.computed))
        blocks = sequence.blocks[command.from_block : used]
        until_us = self._clock.now_us() + command.lease_us
        if not command.lease_id:
            lease = self.holds.lease(blocks, until_us, command.final)
        elif self.holds.get(command.lease_id) is None:
            return kv.Exported(number, error=f"lease {command.lease_id} has ended")
        else:
            lease = self.holds.extend(command.lease_id, blocks, until_us, command.final)
        if lease is None:
            limit = f"at most {self.holds.limit} of {self._pool.usable} blocks may wait for others to read them"
            return kv.Exported(number, error=limit, full=True)
        exported = kv.Exported(
            number=number,
            lease_id=lease.lease_id,
            blocks=blocks,
            generations=[self._pool.generations[block] for block in blocks],
            computed=sequence.computed,
            output=packing.pack(sequence.output) if command.final else b"",
        )
        if command.final:
            self._loop.detach(sequence)
            self._detached(sequence)
        return exported

    def _read(self, command: kv.ReadBlocks) -> kv.BlockBytes:
        lease = self.holds.get(command.lease_id)
        granted = {0} if command.lease_id == PROBE_LEASE else set(lease.blocks) if lease else set[int]()
        if not granted.issuperset(command.blocks):
            return kv.BlockBytes(command.number, error=f"lease {command.lease_id} does not hold these blocks (now)")
        if len(command.blocks) * self._storage.block_bytes > frames.MAX_FRAME_BYTES // 2:
            return kv.BlockBytes(command.number, error="more than fits in a frame")
        return kv.BlockBytes(command.number, self._storage.read(command.blocks))

    # --- the target's side -------------------------------------------------------------------------------

    @property
    def _refusal(self) -> str:
        return "the mover has too much to do" if self._mover else "caches do not move here: no transport"

    @property
    def _spare(self) -> int:
        """Who runs here must not lose its blocks to somebody who is well off elsewhere: each may need one more."""
        return sum(1 for _ in self._loop.running)

    def _reserve(self, command: kv.Reserve) -> None:
        attempt = Attempt(command.leader_epoch, command.seq)
        tokens, spare = command.tokens, self._spare
        ok = self._mover is not None and self.reservations.reserve(command.request_id, attempt, tokens, spare)
        self._tell(kv.Reserved(command.request_id, *attempt, ok, self._pool.free))

    def _pull(self, command: kv.Pull) -> None:
        attempt = Attempt(command.leader_epoch, command.seq)
        due_us = self._clock.now_us() + command.within_us
        busy = self.holds.quarantined
        first, count = command.first_block, len(command.blocks)
        local = self.reservations.aim(command.request_id, attempt, first, count, busy)
        if self._mover is None or local is None:
            self._pulled(_Pulling(command, (), due_us), error="no such blocks are reserved" if count else "no blocks")
            return
        transfer = self.holds.post(local, due_us + WEDGED_AFTER_US)
        self._pulling[transfer.transfer_id] = _Pulling(command, local, due_us)
        remote, last = tuple(command.blocks), command.last
        read = Read(transfer.transfer_id, command.peer, command.lease_id, remote, local, due_us, last)
        if not self._mover.order(read):
            self._over(ReadOver(transfer.transfer_id, error=self._refusal))

    def _heard(self, news: News) -> None:
        match news:
            case ReadOver():
                self._over(news)
            case MoverFailed(message):
                raise RuntimeError(f"the thread that moves caches failed: {message}")
            case kv.Linked() | kv.FetchBytes():
                self._tell(news)

    def _over(self, over: ReadOver) -> None:
        pulling = self._pulling.pop(over.transfer_id)
        if not pulling.told:
            if not over.error:
                self.reservations.fill(pulling.pull.request_id, pulling.attempt, pulling.local)
            self._pulled(pulling, over.transport, over.took_us, over.error)
        # Last, so that no block is anybody else's while its owner hears of it.
        self.holds.terminal(over.transfer_id)

    def _pulled(self, pulling: _Pulling, transport: str = "", took_us: int = 0, error: str = "") -> None:
        pulling.told = True
        pull = pulling.pull
        size = 0 if error else len(pulling.local) * self._storage.block_bytes
        self._tell(
            kv.Pulled(pull.number, pull.request_id, pull.leader_epoch, pull.seq, transport, size, took_us, error)
        )

    def _forget_pulls(self, request_id: str, attempt: Attempt) -> None:
        """Those that have not begun need not begin."""
        for transfer_id, pulling in self._pulling.items():
            if (pulling.pull.request_id, pulling.attempt) == (request_id, attempt) and self._mover is not None:
                self._mover.order(Forget(transfer_id))
