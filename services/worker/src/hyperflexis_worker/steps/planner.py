"""A step policy at work on real sequences and blocks: what it chooses, made into a plan that the pool can hold."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np

from hyperflexis.common.v1 import slo_pb2
from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.pool_room import PoolRoom
from hyperflexis_worker.steps.prefill_queue import PrefillQueue
from hyperflexis_worker.steps.queue_load import QueueLoad, queue_load
from hyperflexis_worker.steps.sequence import Sequence
from hyperflexis_worker.steps.step_plan import Chunk, StepPlan
from hyperflexis_worker.steps.step_policy import NO_DECODES, Decodes, StepChoice, StepPolicy


@dataclass(slots=True)
class _Pace:
    """A sequence that decodes here: its TPOT counts from the first token seen here, wherever earlier ones were made."""

    first_us: int
    base: int
    """Output tokens then."""
    last_us: int
    made: int


class StepPlanner:
    """All decodes find room first, those with the most slack yielding theirs; then the policy chooses."""

    def __init__(self, policy: StepPolicy, lengths: OutputLengths | None = None) -> None:
        self.policy = policy
        self._lengths = lengths or OutputLengths()
        self._queue = PrefillQueue()
        self._queued: dict[int, Sequence] = {}
        self._paces: dict[Sequence, _Pace] = {}
        self._credits: dict[Sequence, float] = {}
        self._choice = StepChoice()
        self._decodes = NO_DECODES
        self._left = False

    @property
    def prefill_share(self) -> float:
        """Of the time while prompts wait, what goes into prefill."""
        return float(getattr(self.policy, "prefill_share", 1.0))

    @property
    def pace(self) -> float:
        """Actual over predicted step time, lately."""
        return float(getattr(self.policy, "pace", 1.0))

    def queued(self, running: Rows[Sequence], waiting: Rows[Sequence], now_us: int) -> QueueLoad:
        """The prefill of those that wait or have begun."""
        self._sync([sequence for sequence in running if not sequence.decoding], waiting)
        return queue_load(self.policy, self._queue, now_us)

    def plan(self, running: Rows[Sequence], waiting: Rows[Sequence], pool: BlockPool, now_us: int) -> StepPlan:
        plan = StepPlan()
        decoding = [sequence for sequence in running if sequence.decoding]
        begun = [sequence for sequence in running if not sequence.decoding]
        self._follow(decoding, [*begun, *waiting], now_us)
        free = self._make_room(decoding, begun, pool, plan)
        self._sync(begun, waiting)
        self._decodes = self._columns(decoding)
        room = PoolRoom(pool, self._lengths, decoding, begun, free, admits=not plan.preempted)
        choice = self._choice = self.policy.choose(now_us, self._decodes, self._queue, room)
        for at, sequence in enumerate(decoding):
            if choice.decode is None or choice.decode[at]:
                plan.chunks.append(Chunk(sequence, sequence.computed, 1))
            self._credits[sequence] = float(self._decodes.credit[at])
        for request, tokens in choice.chunks:
            sequence = self._queued[request.number]
            start, cached = room.start(sequence)
            plan.chunks.append(Chunk(sequence, start, tokens, cached))
        for given_up in choice.given_up:
            sequence = self._queued[given_up.request.number]
            decision = slo_pb2.Decision(kind="give_up", reason=given_up.reason, numbers=given_up.numbers)
            plan.given_up.append((sequence, decision))
        left = len(self._queue) - len(choice.given_up) - len(choice.chunks)
        self._left = left > 0 or any(chunk.length > 1 and not chunk.samples for chunk in plan.chunks)
        if not plan.chunks and not plan.given_up and begun:
            self._unlock(begun, free, pool, plan)
        return plan

    def stepped(self, plan: StepPlan, predicted_us: float, took_us: float, model: StepTimeModel) -> None:
        """The plan made last took so long; `model` is the newest fit. All three with what passes between two steps.
        Called before its tokens are committed."""
        self.policy.stepped(self._choice, self._decodes, self._left, predicted_us, took_us)
        self.policy.model = model

    def _follow(self, decoding: Rows[Sequence], others: Rows[Sequence], now_us: int) -> None:
        """Notes who made a token since the last plan: the step before ended just now. `others`: who is here beside
        them; the clock of one that lost its blocks goes on."""
        here = set(decoding)
        if any(sequence not in here for sequence in self._paces):
            here.update(others)
            for sequence in [s for s in self._paces if s not in here]:
                del self._paces[sequence]
                self._credits.pop(sequence, None)
        for sequence in decoding:
            pace = self._paces.get(sequence)
            if pace is None:
                self._paces[sequence] = pace = _Pace(now_us, sequence.made, now_us, sequence.made)
            elif pace.made != sequence.made:
                pace.last_us, pace.made = now_us, sequence.made
            sequence.next_due_us = pace.first_us + (1 + pace.made - pace.base) * sequence.tpot_us

    def _make_room(self, decoding: list[Sequence], begun: list[Sequence], pool: BlockPool, plan: StepPlan) -> int:
        """Free blocks left when every decode has its next one. Whoever can best wait gives up its blocks: a prompt that
        began before a decode; the oldest request never, so that somebody always gets on."""
        free = pool.free
        given_back: list[int] = []

        def needed() -> int:
            return sum(max(pool.blocks_for(s.computed + 1) - len(s.blocks), 0) for s in decoding)

        while (short := needed()) > free:
            oldest = min((*decoding, *begun), key=lambda s: (s.arrival_us, s.number))
            victims = [s for s in begun if s is not oldest] or [s for s in decoding if s is not oldest] or [oldest]
            victim = max(victims, key=lambda s: (s.due_us, s.number))
            (begun if victim in begun else decoding).remove(victim)
            plan.preempted.append(victim)
            # Blocks that it shares become free only with their last owner.
            free -= pool.freed_by(given_back)
            given_back += victim.blocks
            free += pool.freed_by(given_back)
        return free - short

    def _unlock(self, begun: list[Sequence], free: int, pool: BlockPool, plan: StepPlan) -> None:
        """Prompts that began hold the pool between them, and none can go on: those due last yield to the oldest."""
        oldest = min(begun, key=lambda s: (s.arrival_us, s.number))
        given_back: list[int] = []
        for victim in sorted((s for s in begun if s is not oldest), key=lambda s: (-s.due_us, s.number)):
            plan.preempted.append(victim)
            self._queue.remove(self._queued.pop(victim.number))  # it waits again, from its first token on
            given_back += victim.blocks
            tokens = (len(oldest.blocks) + free + pool.freed_by(given_back)) * pool.block_tokens - oldest.computed
            if tokens > 0:
                plan.chunks.append(Chunk(oldest, oldest.computed, min(tokens, oldest.to_compute)))
                return

    def _sync(self, begun: Rows[Sequence], waiting: Rows[Sequence]) -> None:
        """The queue holds exactly these, as far as they are."""
        now = {sequence.number: sequence for sequence in (*begun, *waiting)}
        for number in [number for number, sequence in self._queued.items() if now.get(number) is not sequence]:
            self._queue.remove(self._queued.pop(number))
        for number, sequence in now.items():
            if number not in self._queued:
                self._queued[number] = sequence
                self._queue.add(sequence)
            elif sequence.computed:
                self._queue.progressed(sequence)

    def _columns(self, decoding: Rows[Sequence]) -> Decodes:
        paces = [self._paces[sequence] for sequence in decoding]
        return Decodes(
            due_us=np.array([sequence.next_due_us or 0 for sequence in decoding], dtype=np.float64),
            pause_end_us=np.array(
                [p.last_us + max(s.tpot_us, s.max_gap_us) for s, p in zip(decoding, paces, strict=True)],
                dtype=np.float64,
            ),
            tpot_us=np.array([sequence.tpot_us for sequence in decoding], dtype=np.float64),
            context_tokens=float(sum(sequence.computed for sequence in decoding)),
            credit=np.array([self._credits.get(sequence, 0.0) for sequence in decoding], dtype=np.float64),
        )
