"""What KV travels on: between any two workers a link of some rate; a worker's reads queue, and so do those from it.

They queue by the worker's own rule: last reads overtake, and what they overtake goes piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hyperflexis_worker.kv.read_order import IN_FLIGHT_US, ReadOrder

NVLINK_GBPS = 330.0
"""Between two GPUs of one host, fragmented blocks (docs: measured 346 to 371, 292 to 327 beside load)."""
NETWORK_GBPS = 25.0


@dataclass(frozen=True, slots=True)
class WireRules:
    gbps: float = NVLINK_GBPS
    """Between workers of one host."""
    between_gbps: float = NETWORK_GBPS
    """Between hosts."""
    host_workers: int = 8
    """So many workers after one another share a host."""
    setup_us: float = 1_000.0
    """Of each read: request, grant, launch, and the word that it is complete."""
    bytes_per_token: float = 131_072.0
    piece_us: float = IN_FLIGHT_US
    """Of a pre-copy: so long nobody overtakes it."""

    def rate(self, source: int, target: int) -> float:
        """GB/s."""
        same = source // self.host_workers == target // self.host_workers
        return self.gbps if same else self.between_gbps


At = Callable[..., None]
"""(time, action, arguments): later, in order, told the time."""
End = tuple[str, int]


@dataclass(slots=True, eq=False)
class _Reading:
    ends: frozenset[End]
    left_us: float
    """Not yet begun."""
    earliest_us: float
    last: bool
    done: Callable[[float], None]
    under_way: bool = field(default=False, init=False)


class Wires:
    """Every end of a link does one thing at a time. Who waits keeps both of its ends from those behind it, so that it
    is never passed by."""

    def __init__(self, rules: WireRules, at: At) -> None:
        self.rules = rules
        self._at = at
        self._waiting: ReadOrder[_Reading] = ReadOrder()
        self._busy: set[End] = set()

    def read(
        self, source: int, target: int, tokens: float, last: bool, now_us: float, done: Callable[[float], None]
    ) -> None:
        """`done` is told when the target has them. The set-up of a read goes on beside the reads before it.
        `last`: a stopped request waits for it."""
        rules = self.rules
        took_us = tokens * rules.bytes_per_token / (rules.rate(source, target) * 1e3)
        ends = frozenset({("out", source), ("in", target)})
        self._waiting.add(_Reading(ends, took_us, now_us + rules.setup_us + took_us, last, done), last)
        self._begin(now_us)

    def _begin(self, now_us: float) -> None:
        taken = set(self._busy)
        for reading in self._waiting:
            if not reading.under_way and taken.isdisjoint(reading.ends):
                self._go_on(reading, now_us)
            taken |= reading.ends

    def _go_on(self, reading: _Reading, now_us: float) -> None:
        piece_us = reading.left_us if reading.last else min(reading.left_us, self.rules.piece_us)
        reading.left_us -= piece_us
        reading.under_way = True
        self._busy |= reading.ends
        self._waiting.began(reading)
        if not reading.left_us:
            self._waiting.remove(reading)
        self._at(now_us + piece_us, self._ended, reading)

    def _ended(self, reading: _Reading, now_us: float) -> None:
        """One piece."""
        reading.under_way = False
        self._busy -= reading.ends
        self._begin(now_us)
        if reading.left_us or reading.under_way:
            return
        if reading.earliest_us > now_us:
            self._at(reading.earliest_us, reading.done)
        else:
            reading.done(now_us)
