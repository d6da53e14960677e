"""Links to peers: the best transport that both sides have and that works, found out by reading the reserved block.

A link comes up by a warm-up read, whose first transfer wires the connection and whose second is measured; only then it
carries reads. Where a transport fails or is too slow at that, the next one is tried. Reads for the probe go from the
peer's reserved block to our own, which no sequence owns, under lease 0.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import structlog

from hyperflexis_common.clock import Clock
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.kv.peer_metadata import PeerMetadata
from hyperflexis_worker.kv.transport import LinkError, Progress, Transport

log = structlog.get_logger(__name__)

PROBE_LEASE = 0
PROBE_LIMIT_US = 5_000_000
PROBE_BYTES = 16 * 2**20
LEARNED = 0.25
"""Of what a read says of a link's rate."""
PROBE_BLOCKS = 256
"""The measured read is that large, or has so many blocks, whichever is less."""


@dataclass(slots=True)
class _Link:
    peer: str
    metadata: PeerMetadata
    began_us: int
    untried: list[Transport]
    transport: Transport | None = None
    up: bool = False
    rate: float = 0.0
    setup_us: int = 0
    probe: int | None = None
    probe_began_us: int = 0
    measuring: bool = False
    reads: int = 0
    """Under way, probes left out."""
    closing: bool = False
    next: kv.LinkPeer | None = None
    """Asked for while this one closes."""
    errors: list[str] = field(default_factory=list)


class Links:
    """By peer. `tell` gets every Linked. Everything is called by one thread."""

    def __init__(
        self, own: PeerMetadata, transports: Rows[Transport], clock: Clock, tell: Callable[[kv.Linked], None]
    ) -> None:
        self._own = own
        self._transports = transports
        self._clock = clock
        self._tell = tell
        self._links: dict[str, _Link] = {}
        self._stray: list[tuple[Transport, str, int]] = []
        """Probes that took too long and are not over: their transport keeps its link until they are."""
        self._probe_blocks = max(min(PROBE_BYTES // max(own.block_bytes, 1), PROBE_BLOCKS), 1)

    @property
    def moving(self) -> bool:
        """Something here is to be polled."""
        return bool(self._stray) or any(link.probe is not None for link in self._links.values())

    def order(self, command: kv.LinkPeer) -> None:
        link = self._links.get(command.peer)
        if link is None:
            if not command.remove:
                self._make(command)
            return
        if command.remove:
            link.next = None
            self._close(link)
        elif link.closing or command.metadata != link.metadata.encode():
            link.next = command  # another life under the old name
            self._close(link)
        elif link.up:
            self._tell_up(link)

    def transport(self, peer: str) -> Transport | None:
        """That carries reads from this peer now. Raises LinkError where there is no link, nor one in the making."""
        link = self._links.get(peer)
        if link is None or (link.closing and link.next is None):
            raise LinkError(f"no link to {peer}")
        return link.transport if link.up and not link.closing else None

    def gigabytes_per_s(self, peer: str) -> float:
        """Of a link that is up, as its warm-up read and what was read since have measured it."""
        return self._links[peer].rate

    def measured(self, peer: str, gigabytes_per_s: float) -> None:
        """By a read. The warm-up reads one block again and again, which caches make too fast, a busy host too slow."""
        link = self._links[peer]
        link.rate += (gigabytes_per_s - link.rate) * LEARNED

    def began(self, peer: str) -> None:
        self._links[peer].reads += 1

    def ended(self, peer: str, failed: bool) -> None:
        """A read is over. One that failed may be the link's fault: it is probed again."""
        link = self._links[peer]
        link.reads -= 1
        if link.closing:
            self._close(link)
        elif failed and link.probe is None:
            self._probe(link, measuring=False)

    def turn(self) -> None:
        """Looks at the probes."""
        for transport, peer, handle in list(self._stray):
            if transport.poll(handle) is not Progress.PENDING:
                self._stray.remove((transport, peer, handle))
                if self._transport_of(peer) is not transport:
                    transport.disconnect(peer)
        for link in list(self._links.values()):
            if link.probe is not None:
                self._look(link)

    def close(self) -> bool:
        """Ends every link. False where a transfer is still under way: its transport must not be closed."""
        for link in list(self._links.values()):
            link.next = None
            self._close(link)
        return not self._links and not self._stray

    def _make(self, command: kv.LinkPeer) -> None:
        try:
            metadata = PeerMetadata.decode(command.metadata)
        except ValueError as error:
            self._tell(kv.Linked(command.peer, error=str(error)))
            return
        why = self._own.difference(metadata)
        if metadata.name != command.peer:
            why = f"it calls itself {metadata.name}"
        elif metadata.name == self._own.name:
            why = "an engine does not link to itself"
        common = [one for one in self._transports if one.name in metadata.transports]
        if not why and not common:
            mine = ", ".join(one.name for one in self._transports) or "none"
            why = f"no transport in common: here {mine}; there {', '.join(metadata.transports) or 'none'}"
        if why:
            self._tell(kv.Linked(command.peer, error=why))
            return
        link = self._links[command.peer] = _Link(command.peer, metadata, self._clock.now_us(), common)
        self._try_next(link)

    def _try_next(self, link: _Link) -> None:
        while link.untried:
            transport = link.transport = link.untried.pop(0)
            if any(one is transport and peer == link.peer for one, peer, _ in self._stray):
                link.errors.append(f"{transport.name}: an earlier probe is not over")
                continue
            try:
                transport.connect(link.peer, link.metadata.transports[transport.name])
            except LinkError as error:
                link.errors.append(f"{transport.name}: {error}")
                continue
            if self._probe(link, measuring=False):
                return
        link.transport = None
        self._lost(link)

    def _probe(self, link: _Link, measuring: bool) -> bool:
        """Begins one; False where that cannot be, and the transport is given up."""
        assert link.transport is not None
        blocks = [0] * (self._probe_blocks if measuring else 1)
        try:
            link.probe = link.transport.post(link.peer, PROBE_LEASE, blocks, blocks)
        except LinkError as error:
            self._failed(link, str(error))
            return False
        link.probe_began_us, link.measuring = self._clock.now_us(), measuring
        return True

    def _look(self, link: _Link) -> None:
        assert link.transport is not None and link.probe is not None
        progress = link.transport.poll(link.probe)
        took_us = self._clock.now_us() - link.probe_began_us
        if progress is Progress.PENDING:
            if took_us > PROBE_LIMIT_US:
                self._stray.append((link.transport, link.peer, link.probe))
                link.probe = None
                if link.closing:
                    self._close(link)
                    return
                self._give_up(link, f"not answered within {PROBE_LIMIT_US // 1_000_000} s")
            return
        link.probe = None
        if link.closing:
            self._close(link)
        elif progress is Progress.FAILED:
            self._give_up(link, "the warm-up read failed")
        elif link.up:
            return  # it still works
        elif not link.measuring:
            if not self._probe(link, measuring=True):
                self._try_next(link)
        else:
            link.up = True
            link.rate = self._probe_blocks * self._own.block_bytes / max(took_us, 1) / 1_000
            link.setup_us = self._clock.now_us() - link.began_us
            self._tell_up(link)

    def _give_up(self, link: _Link, why: str) -> None:
        self._failed(link, why)
        if not link.up:
            self._try_next(link)

    def _failed(self, link: _Link, why: str) -> None:
        """Of one transport. A link that was up is lost; one in the making has others to try."""
        assert link.transport is not None
        link.errors.append(f"{link.transport.name}: {why}")
        log.warning("a transport does not reach a peer", peer=link.peer, transport=link.transport.name, error=why)
        if link.up:
            self._lost(link)
        elif all(peer != link.peer or one is not link.transport for one, peer, _ in self._stray):
            link.transport.disconnect(link.peer)

    def _lost(self, link: _Link) -> None:
        self._tell(kv.Linked(link.peer, error="; ".join(link.errors)))
        self._close(link)

    def _close(self, link: _Link) -> None:
        """Once nothing is under way; until then it only takes no more reads."""
        link.closing = True
        if link.reads or link.probe is not None:
            return
        self._links.pop(link.peer, None)
        stray = any(one is link.transport and peer == link.peer for one, peer, _ in self._stray)
        if link.transport is not None and not stray:
            link.transport.disconnect(link.peer)
        if link.next is not None:
            self._make(link.next)

    def _transport_of(self, peer: str) -> Transport | None:
        link = self._links.get(peer)
        return None if link is None else link.transport

    def _tell_up(self, link: _Link) -> None:
        assert link.transport is not None
        used = link.transport.used(link.peer)
        self._tell(kv.Linked(link.peer, link.transport.name, link.rate, link.setup_us, wire=used))
