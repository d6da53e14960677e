"""The scheduler's side of roles and moves: it hears what workers report, and carries to them what the cores decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.decode_placement import Decode, DecodePlacement, Placed, at_once
from hyperflexis_scheduler.core.links import Links
from hyperflexis_scheduler.core.loads import Slots, WorkerLoads
from hyperflexis_scheduler.core.migration import TRIGGERS, Migration, MigrationRules
from hyperflexis_scheduler.core.roles import RoleController, RoleRules
from hyperflexis_sim.decode_book import DecodeBook
from hyperflexis_sim.delays import Delays
from hyperflexis_sim.engine import SimEngine
from hyperflexis_sim.moves import Moves, MoveState
from hyperflexis_sim.request import SimRequest
from hyperflexis_sim.wires import At, WireRules, Wires

ROUND_US = 100_000.0
"""Between two rounds of migration and of roles."""
AHEAD_US = 500_000.0
"""A prefill that takes less is given its place to decode when it begins, a longer one when it ends: room reserved for
long is room wasted."""


class Placement(Protocol):
    def choose(self, decode: Decode, source: int, loads: WorkerLoads, among: Slots, links: Links) -> Placed: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a policy's name asks for after its @."""

    roles: Sequence[int] = ()
    """Of the workers in turn; none = all MIXED."""
    adaptive: bool = False
    short: bool = False
    """Short prompts go straight to where they will decode."""
    triggers: frozenset[str] = frozenset(TRIGGERS)
    placement: Callable[[float], Placement] = field(default=lambda kv_bytes: DecodePlacement(None, kv_bytes))
    role_rules: RoleRules = RoleRules()


class Disaggregation:
    def __init__(
        self,
        plan: Plan,
        engines: Sequence[SimEngine],
        loads: WorkerLoads,
        book: DecodeBook,
        wires: WireRules,
        delays: Delays,
        at: At,
        renew: Callable[[int], None],
    ) -> None:
        self.plan = plan
        self.engines = engines
        self.loads = loads
        self.book = book
        self.moves = Moves(engines, Wires(wires, at), at, renew)
        self.moves.on_over = self._over
        self.links = Links(wires.between_gbps, wires.setup_us)
        self.placement = plan.placement(wires.bytes_per_token)
        self.roles = RoleController(plan.role_rules)
        self.leaving: set[int] = set()
        self.on_left: Callable[[int, float], None] = lambda slot, now_us: None
        self.flips: list[tuple[float, int, int]] = []
        self.counts: dict[str, int] = {}
        self._kv_gb = wires.bytes_per_token / 1e9
        self._delays = delays
        self._at = at
        self._round_us = 0.0
        self._all = np.arange(len(engines))
        placed = DecodePlacement(None, wires.bytes_per_token)
        self.migration = Migration(placed, MigrationRules(triggers=plan.triggers))
        for slot, engine in enumerate(engines):
            if plan.roles:
                loads.set(slot, columns.ROLE, plan.roles[slot % len(plan.roles)])
            engine.on_started = self._heard(self._started, slot)
            for other in range(len(engines)):
                self.links.measured(slot, other, wires.rate(slot, other))
        self._show_roles()

    def _show_roles(self) -> None:
        roles = self.loads.of(columns.ROLE, self._all)
        stays = np.array([slot not in self.leaving for slot in range(len(self.engines))])
        self.prefills = self._all[(roles != columns.DECODE) & stays]
        self.decoders = self._all[(roles != columns.PREFILL) & stays]

    def leave(self, slot: int) -> None:
        """It is to get empty: nothing new goes there."""
        self.leaving.add(slot)
        self._show_roles()

    def candidates(self, request: SimRequest) -> Slots:
        """Where it may be prefilled."""
        if self.plan.short and len(self.decoders):
            own_us = self.loads.prefill_us(request.prompt_tokens, self.decoders)
            straight = at_once(own_us, request.tpot_us, self.loads, self.decoders)
            if len(straight):
                return straight
        found: Slots = self.prefills
        return found

    def ended(self, request: SimRequest, now_us: float) -> None:
        """Finished, or given up."""
        self.moves.ended(request, now_us)

    def _heard(self, told: Callable[[SimRequest, int, float], None], slot: int) -> Callable[[SimRequest, float], None]:
        def tell(request: SimRequest, now_us: float) -> None:
            self._at(now_us + self._delays.report_us, told, request, slot)

        return tell

    def _started(self, request: SimRequest, slot: int, now_us: float) -> None:
        own_us = float(self.loads.prefill_us(request.prompt_tokens, np.array([slot]))[0])
        if own_us <= AHEAD_US:
            self.place(request, slot, now_us)

    def place(self, request: SimRequest, slot: int, now_us: float) -> None:
        """To where it decodes, if its worker is to be rid of it and that is not on its way already."""
        leaves = slot in self.leaving and "drain" in self.plan.triggers
        if self.book.on_way(request) or not (leaves or self.loads.get(slot, columns.ROLE) == columns.PREFILL):
            return
        decode = self.book.decode(request, slot, now_us)
        placed = self.placement.choose(decode, slot, self.loads, self.decoders, self.links)
        self._tally("stay:" + placed.reason if placed.slot is None else "place")
        if placed.slot is not None:
            self._begin(request, slot, placed.slot, decode.context_tokens, now_us)

    def _begin(self, request: SimRequest, source: int, target: int, context: float, now_us: float) -> None:
        self.book.moving(request, target, context)
        self.links.begin(source, target, context * self._kv_gb)
        self._at(now_us + self._delays.dispatch_us, lambda at_us: self.moves.begin(request, source, target, at_us))

    def _over(self, move: MoveState, moved: bool, now_us: float) -> None:
        self._tally("moved" if moved else "stayed")
        if moved:
            self.on_left(move.source, now_us)
        self._at(now_us + self._delays.report_us, self._heard_over, move, moved)

    def _heard_over(self, move: MoveState, moved: bool, now_us: float) -> None:
        request = move.request
        context = self.book.moved(request, move.source, move.target, moved)
        self.links.end(move.source, move.target, context * self._kv_gb)

    def reported(self, now_us: float) -> None:
        if now_us < self._round_us + ROUND_US:
            return
        self._round_us = now_us
        if self.plan.adaptive:
            among = np.array([slot for slot in self._all.tolist() if slot not in self.leaving], dtype=np.intp)
            change = self.roles.round(now_us, self.loads, among)
            for slot, role in change.roles.items():
                self.loads.set(slot, columns.ROLE, role)
                self.flips.append((now_us, slot, role))
            if change.roles:
                self._tally("flip:" + change.reason)
                self._show_roles()
        if self.leaving or (self.loads.of(columns.ROLE, self._all) == columns.PREFILL).any():
            running = self.book.running(now_us)
            for move in self.migration.round(self.loads, self.decoders, running, self.links, self.leaving):
                entry = self.book.entries[int(move.key)]
                self._tally("move:" + move.reason)
                self._begin(entry.request, move.source, move.target, entry.request.prompt_tokens, now_us)

    def _tally(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
