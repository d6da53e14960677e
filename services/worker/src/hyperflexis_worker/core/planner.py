"""What one engine step does. A planner sees exact local state and returns a plan; it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Protocol

from hyperflexis.common.v1 import slo_pb2
from hyperflexis_common.step_time import StepShape, StepTimeModel
from hyperflexis_worker.core.blocks import BlockPool
from hyperflexis_worker.core.output_lengths import OutputLengths
from hyperflexis_worker.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """`length` tokens of one sequence from `start` on; the last chunk of what it has samples a token."""

    sequence: Sequence
    start: int
    length: int
    cached: tuple[int, ...] = ()
    """Blocks of the prefix [0, start) that others computed, where the sequence is admitted with some."""

    @property
    def samples(self) -> bool:
        return self.start + self.length == self.sequence.num_tokens


@dataclass(slots=True)
class StepPlan:
    """One step: who computes what, who loses its blocks first, who is given up and why."""

    chunks: list[Chunk] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    given_up: list[tuple[Sequence, slo_pb2.Decision]] = field(default_factory=list)

    @property
    def shape(self) -> StepShape:
        decodes = [chunk for chunk in self.chunks if chunk.length == 1 and chunk.samples]
        return StepShape(
            prefill_chunks=tuple((c.length, c.start) for c in self.chunks if not (c.length == 1 and c.samples)),
            decodes=len(decodes),
            decode_context_tokens=sum(chunk.start for chunk in decodes),
        )


class StepPlanner(Protocol):
    def plan(self, running: Rows[Sequence], waiting: Rows[Sequence], pool: BlockPool, now_us: int) -> StepPlan:
        """The next step. `running` own blocks, in the order they were admitted; `waiting` own none."""
        ...

    def stepped(self, plan: StepPlan, predicted_us: float, took_us: float, model: StepTimeModel) -> None:
        """The plan made last took so long; `model` is the newest fit. Called before its tokens are committed."""
        ...

    @property
    def prefill_share(self) -> float:
        """Of the time while prompts wait, what goes into prefill, as far as is known."""
        ...

    @property
    def pace(self) -> float:
        """Actual over predicted step time, lately, as far as is known."""
        ...


def by_arrival(sequence: Sequence) -> tuple[int, str]:
    return (sequence.arrival_us, sequence.request_id)


def by_first_token_deadline(sequence: Sequence) -> tuple[int, str]:
    return (sequence.first_token_due_us, sequence.request_id)


ORDERS: dict[str, Callable[[Sequence], tuple[int, str]]] = {"fcfs": by_arrival, "edf": by_first_token_deadline}


class BudgetPlanner:
    """One token budget a step: all decodes first, then prefill chunks in order while budget lasts.

    When a decode finds no free block, the running sequence last in order gives up its blocks and is computed
    again later; nobody new is admitted in a step that preempted. (vLLM v1's unified rule; Sarathi-Serve with
    a small budget.) Admission leaves room for what all running sequences are expected to grow by.
    """

    def __init__(
        self, max_tokens: int, max_sequences: int, order: str = "fcfs", lengths: OutputLengths | None = None
    ) -> None:
        if order not in ORDERS:
            raise ValueError(f"unknown order {order!r}; known: {', '.join(sorted(ORDERS))}")
        if max_tokens < 1 or max_sequences < 1:
            raise ValueError("max_tokens and max_sequences must be at least 1")
        self._max_tokens = max_tokens
        self._max_sequences = max_sequences
        self._order = ORDERS[order]
        self._lengths = lengths or OutputLengths()

    def plan(self, running: Rows[Sequence], waiting: Rows[Sequence], pool: BlockPool, now_us: int) -> StepPlan:
        plan = StepPlan()
        free, budget = pool.free, self._max_tokens
        given_back: list[int] = []
        keep = sorted(running, key=lambda s: (not s.decoding, *self._order(s)))
        scheduled = 0
        while scheduled < len(keep):
            sequence = keep[scheduled]
            length = min(sequence.to_compute, budget)
            if length < 1:
                break
            needed = pool.blocks_for(sequence.computed + length) - len(sequence.blocks)
            while needed > free and len(keep) > scheduled + 1:
                victim = keep.pop()
                plan.preempted.append(victim)
                # Blocks that it shares become free only with their last owner.
                free -= pool.freed_by(given_back)
                given_back += victim.blocks
                free += pool.freed_by(given_back)
            if needed > free:
                # Nobody after it is left to preempt: it yields its own blocks to those before it.
                plan.preempted.append(keep.pop())
                break
            plan.chunks.append(Chunk(sequence, sequence.computed, length))
            free -= max(needed, 0)
            budget -= length
            scheduled += 1
        if not plan.preempted:
            self._admit(plan, keep, waiting, pool, free, budget)
        return plan

    def stepped(self, plan: StepPlan, predicted_us: float, took_us: float, model: StepTimeModel) -> None:
        """Learns nothing."""

    @property
    def prefill_share(self) -> float:
        return 1.0

    @property
    def pace(self) -> float:
        return 1.0

    def _admit(
        self, plan: StepPlan, keep: Rows[Sequence], waiting: Rows[Sequence], pool: BlockPool, free: int, budget: int
    ) -> None:
        running = len(keep)
        growth = sum(self._growth(sequence, len(sequence.blocks), pool) for sequence in keep)
        for sequence in sorted(waiting, key=self._order):
            if budget < 1 or running >= self._max_sequences:
                return
            # The last token is always computed: its logits are wanted. So its block is never a shared one.
            whole = (sequence.num_tokens - 1) // pool.block_tokens
            cached = pool.find(sequence.hashes(whole, pool.block_tokens)) if pool.prefix_cache else []
            needed = pool.blocks_for(sequence.num_tokens) - len(cached) + pool.idle(cached)
            growth += self._growth(sequence, pool.blocks_for(sequence.num_tokens), pool)
            if needed > free or (running and needed + growth > free):
                return
            start = len(cached) * pool.block_tokens
            length = min(sequence.num_tokens - start, budget)
            plan.chunks.append(Chunk(sequence, start, length, tuple(cached)))
            free -= needed
            budget -= length
            running += 1

    def _growth(self, sequence: Sequence, blocks: int, pool: BlockPool) -> int:
        """Blocks that it is expected to need beyond these."""
        remaining = int(self._lengths.remaining(sequence.tier, sequence.made, sequence.max_tokens))
        return max(pool.blocks_for(sequence.num_tokens + remaining) - blocks, 0)
