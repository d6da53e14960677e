"""Which running decodes should move, and why. Pure; one round at a time, a few moves a round.

Two reasons were found to be worth a move (docs/scheduling.md has those that were not):

- drain: the worker leaves; everything goes, the most urgent first.
- role: it decodes on a PREFILL worker, where it was prefilled and had no place to go when it began.

Nothing goes back and forth: no target is a PREFILL worker or one that leaves, and roles do not flip twice in a second.
What has nowhere to go decodes on where it is, and is looked at again in the next round.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hyperflexis_scheduler.core.decode_placement import Decode, DecodePlacement
from hyperflexis_scheduler.core.links import Links
from hyperflexis_scheduler.core.loads import (
    ARRIVING,
    ARRIVING_TOKENS,
    PREFILL,
    ROLE,
    TIGHTEST,
    Slots,
    WorkerLoads,
)

TRIGGERS = ("drain", "role")
"""The gravest first."""


class Running(NamedTuple):
    """A decode that is not on the move, as the scheduler knows it."""

    key: str | int
    decode: Decode


class Move(NamedTuple):
    key: str | int
    source: int
    target: int
    reason: str
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MigrationRules:
    triggers: frozenset[str] = frozenset(TRIGGERS)
    per_round: int = 16
    stuck: int = 3
    """Decodes of one worker and TPOT that find no place before the others of that TPOT are left for the next round."""


class Migration:
    def __init__(self, placement: DecodePlacement, rules: MigrationRules | None = None) -> None:
        self.placement = placement
        self.rules = rules or MigrationRules()

    def round(
        self,
        loads: WorkerLoads,
        among: Slots,
        running: Mapping[int, Sequence[Running]],
        links: Links,
        leaving: Iterable[int] = (),
    ) -> list[Move]:
        """`among`: where decodes may go; `running`: by slot, leaving ones too; `leaving`: slots that must get empty.

        Each move counts on those before it; `loads` and `links` stay as they are until the moves are begun."""
        loads, leaves = loads.copy(), set(leaving)
        stay = np.array([slot for slot in among.tolist() if slot not in leaves], dtype=np.intp)
        moves: list[Move] = []
        for source, reason in self._sources(loads, running, leaves):
            stuck: Counter[float] = Counter()
            for each in sorted(running[source], key=_urgency):
                if len(moves) >= self.rules.per_round:
                    return moves
                if stuck[each.decode.tpot_us] >= self.rules.stuck:
                    continue
                placed = self.placement.choose(each.decode, source, loads, stay, links)
                if placed.slot is None:
                    stuck[each.decode.tpot_us] += 1
                    continue
                moves.append(Move(each.key, source, placed.slot, reason, placed.numbers))
                loads.add(placed.slot, ARRIVING, 1)
                loads.add(placed.slot, ARRIVING_TOKENS, each.decode.context_tokens)
                loads.set(placed.slot, TIGHTEST, placed.numbers["tightest_tpot_us"])
        return moves

    def _sources(
        self, loads: WorkerLoads, running: Mapping[int, Sequence[Running]], leaves: set[int]
    ) -> list[tuple[int, str]]:
        """With the reason why each is to be rid of its decodes; those that leave first."""
        found = []
        for slot in sorted(slot for slot in running if running[slot]):
            reason = "drain" if slot in leaves else "role" if loads.get(slot, ROLE) == PREFILL else ""
            if reason in self.rules.triggers:
                found.append((slot, reason))
        return sorted(found, key=lambda each: TRIGGERS.index(each[1]))


def _urgency(running: Running) -> tuple[float, float]:
    """The tightest first, and of those alike the one that would stay longest."""
    return running.decode.tpot_us, -running.decode.growth_tokens
