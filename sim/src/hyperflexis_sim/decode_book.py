"""Which request decodes where, as a scheduler knows it: from what workers report of each request, and no token more."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.decode_placement import Decode
from hyperflexis_scheduler.core.loads import WorkerLoads
from hyperflexis_scheduler.core.migration import Running
from hyperflexis_sim.request import SimRequest


@dataclass(slots=True, eq=False)
class Entry:
    request: SimRequest
    slot: int
    first_us: float
    """When its first token was heard of."""


class DecodeBook:
    """Keeps the columns TIGHTEST, ARRIVING and ARRIVING_TOKENS of the loads."""

    def __init__(self, loads: WorkerLoads, lengths: OutputLengths) -> None:
        self._loads = loads
        self._lengths = lengths
        self.entries: dict[int, Entry] = {}
        self._tpots: dict[int, Counter[float]] = {}
        self._on_way: set[int] = set()
        self._arriving: dict[int, dict[int, float]] = {}

    def begun(self, request: SimRequest, slot: int, now_us: float) -> None:
        """Its first token was made there."""
        self.entries[request.number] = Entry(request, slot, now_us)
        self._count(slot, request.tpot_us, 1)

    def gone(self, request: SimRequest) -> None:
        entry = self.entries.pop(request.number, None)
        if entry is not None:
            self._count(entry.slot, request.tpot_us, -1)

    def on_way(self, request: SimRequest) -> bool:
        return request.number in self._on_way

    def moving(self, request: SimRequest, target: int, context: float) -> None:
        """It has been decided that it goes there."""
        self._on_way.add(request.number)
        self._arriving.setdefault(target, {})[request.number] = context
        self._count(target, request.tpot_us, 1)
        self._show_arriving(target)

    def moved(self, request: SimRequest, source: int, target: int, came: bool) -> float:
        """It came there, or it stays where it was. Returns the context that was expected."""
        self._on_way.discard(request.number)
        context = self._arriving.get(target, {}).pop(request.number, 0.0)
        self._count(target, request.tpot_us, -1)
        self._show_arriving(target)
        entry = self.entries.get(request.number)
        if entry is None:
            return context
        if came:
            self._count(entry.slot, request.tpot_us, -1)
            self._count(target, request.tpot_us, 1)
            entry.slot = target
            # The next reports will say so.
            for slot, sign in ((source, -1), (target, 1)):
                self._loads.add(slot, columns.RUNNING, sign)
                self._loads.add(slot, columns.CONTEXT, sign * context)
                self._loads.add(slot, columns.KV_USED, sign * context)
        return context

    def decode(self, request: SimRequest, slot: int, now_us: float) -> Decode:
        entry = self.entries.get(request.number)
        made = 1
        if entry is not None:
            # Not known exactly: about a token per tightest TPOT there.
            made += int((now_us - entry.first_us) / min(self._loads.get(slot, columns.TIGHTEST), request.tpot_us))
        growth = self._lengths.remaining(request.tier, made, request.max_tokens)
        return Decode(request.prompt_tokens + made, max(growth, 1.0), request.tpot_us)

    def running(self, now_us: float) -> dict[int, list[Running]]:
        """By slot: those that are not on the move."""
        found: dict[int, list[Running]] = {}
        for number, entry in self.entries.items():
            if number not in self._on_way:
                decode = self.decode(entry.request, entry.slot, now_us)
                found.setdefault(entry.slot, []).append(Running(number, decode))
        return found

    def _count(self, slot: int, tpot_us: float, sign: int) -> None:
        counts = self._tpots.setdefault(slot, Counter())
        counts[tpot_us] += sign
        if counts[tpot_us] <= 0:
            del counts[tpot_us]
        self._loads.decodes(slot, counts)

    def paced(self, slot: int) -> None:
        """Its pace has been reported."""
        if counts := self._tpots.get(slot):
            self._loads.decodes(slot, counts)

    def _show_arriving(self, slot: int) -> None:
        arriving = self._arriving.get(slot, {})
        self._loads.set(slot, columns.ARRIVING, len(arriving))
        self._loads.set(slot, columns.ARRIVING_TOKENS, sum(arriving.values()))
