"""One engine's mover over wires that move when their test says so, given its turns by hand."""

from __future__ import annotations

import numpy as np
from memory_wire import MemoryTransport, MemoryWire

from hyperflexis_common.clock import FakeClock
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.kv.mover import Mover
from hyperflexis_worker.kv.peer_metadata import PeerMetadata
from hyperflexis_worker.kv.relay import RelayTransport
from hyperflexis_worker.kv.storage import HostStorage
from hyperflexis_worker.kv.transfers import News, Order, Read

LAYOUT = b"layout"


def storage(total: int = 16, block_bytes: int = 64) -> HostStorage:
    return HostStorage(np.zeros((total, block_bytes), np.uint8), LAYOUT)


class End:
    """One engine's mover, its orders and news."""

    def __init__(self, name: str, *wires: MemoryWire, relay: bool = False, at_once: int = 2, total: int = 16) -> None:
        self.clock = FakeClock()
        self.storage = storage(total)
        self.news: list[News] = []
        transports: list[MemoryTransport | RelayTransport] = []
        for number, wire in enumerate(wires):
            transport = MemoryTransport(name, self.storage, wire)
            transport.name = f"wire{number}"
            transports.append(transport)
        if relay:
            transports.append(RelayTransport(self.storage, self.clock, self.news.append))
        told = {transport.name: transport.metadata() for transport in transports}
        self.metadata = PeerMetadata(name, LAYOUT, self.storage.block_bytes, told)
        self.mover = Mover(self.metadata, transports, self.clock, self.news.append, at_once)

    def order(self, *orders: Order) -> list[News]:
        """What is told about it, turns taken until nothing more comes."""
        for order in orders:
            self.mover.take(order)
        return self.turns()

    def turns(self, count: int = 6) -> list[News]:
        for _ in range(count):
            self.mover.turn()
        news, self.news[:] = list(self.news), []
        return news

    def link(self, peer: End) -> list[News]:
        return self.order(kv.LinkPeer(peer.metadata.name, peer.metadata.encode()))

    def read(self, number: int, peer: End, local: tuple[int, ...] = (3,), due_us: int = 10**12) -> Read:
        return Read(number, peer.metadata.name, 1, (1,) * len(local), local, due_us)
