"""What an engine and the thread that moves its caches say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from hyperflexis_worker.engine import kv_frames as kv


@dataclass(frozen=True, slots=True)
class Read:
    """Read leased blocks of a peer into this pool, pairwise. Answered by one ReadOver."""

    transfer_id: int
    peer: str
    lease_id: int
    remote: tuple[int, ...]
    local: tuple[int, ...]
    due_us: int
    """Nothing of it is begun any more after this."""
    last: bool = False
    """A stopped request waits for it: it overtakes those for which none does."""


@dataclass(frozen=True, slots=True)
class Forget:
    """Nobody wants this read any more: what of it is not under way does not begin."""

    transfer_id: int


@dataclass(frozen=True, slots=True)
class ReadOver:
    """Nothing of it can arrive any more."""

    transfer_id: int
    transport: str = ""
    took_us: int = 0
    error: str = ""
    """Empty = all of it has arrived."""


@dataclass(frozen=True, slots=True)
class MoverFailed:
    """Its thread has ended: reads under way may still write. Only a new process is safe."""

    message: str


class Orders(Protocol):
    """Who moves an engine's caches, as that engine sees it."""

    def order(self, order: Order) -> bool:
        """False, and nothing was ordered, where too much waits already."""
        ...

    def news(self) -> list[News]:
        """What came since it was last asked."""
        ...

    def close(self) -> None: ...


Order = Read | Forget | kv.LinkPeer | kv.FetchedBytes
News = ReadOver | MoverFailed | kv.Linked | kv.FetchBytes
