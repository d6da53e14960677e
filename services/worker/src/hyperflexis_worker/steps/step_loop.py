"""The engine's memory: sequences, their blocks, and how a step's tokens change them.

One step is `plan()` -> an executor computes it -> `commit()`. The same loop runs the torch engine and the
modelled one; only the executor differs.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Protocol

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.pool_room import cached_blocks
from hyperflexis_worker.steps.sampled import Sampled, TokenLogprobs
from hyperflexis_worker.steps.sequence import Sequence
from hyperflexis_worker.steps.step_plan import Chunk, StepPlan


class Executor(Protocol):
    """Computes one step on the device."""

    def execute(self, chunks: Rows[Chunk]) -> Sampled:
        """Writes keys and values of every chunk's tokens into its sequence's blocks.

        Each sequence's `blocks` cover [0, start + length) when this is called.
        """
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended here: drop what is kept for it."""
        ...


@dataclass(frozen=True, slots=True)
class Ended:
    sequence: Sequence
    reason: sampling_pb2.FinishReason.ValueType
    stop_token_id: int = 0


@dataclass(slots=True)
class StepResult:
    """What a step changed: new tokens (one per sampling sequence), first chunks, ends, blocks taken away."""

    tokens: list[tuple[Sequence, int, TokenLogprobs | None]] = field(default_factory=list)
    started: list[Sequence] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    given_up: list[tuple[Sequence, slo_pb2.Decision]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    """Their blocks went to others: all their tokens are to be computed again."""


class StepLoop:
    """Sequences on this engine. `lengths` is taught by those that end; give the planner the same."""

    def __init__(self, planner: StepPlanner, pool: BlockPool, lengths: OutputLengths | None = None) -> None:
        self._planner = planner
        self._pool = pool
        self._lengths = lengths or OutputLengths()
        self._running: dict[str, Sequence] = {}
        self._waiting: dict[str, Sequence] = {}
        self._added = 0

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def running(self) -> Iterable[Sequence]:
        return self._running.values()

    @property
    def waiting(self) -> Iterable[Sequence]:
        return self._waiting.values()

    def fits(self, sequence: Sequence) -> bool:
        """Could it ever run to its end in this pool, alone?"""
        return self._pool.blocks_for(len(sequence.prompt) + sequence.max_tokens) <= self._pool.usable

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence. Raises ValueError for a request id that is here, or one that can never fit."""
        if sequence.request_id in self._running or sequence.request_id in self._waiting:
            raise ValueError(f"{sequence.request_id} is already here")
        if not self.fits(sequence):
            raise ValueError(f"{len(sequence.prompt) + sequence.max_tokens} tokens exceed the KV pool")
        self._added += 1
        sequence.number = self._added
        self._waiting[sequence.request_id] = sequence
        sequence.foreseen = len(cached_blocks(sequence, self._pool)) * self._pool.block_tokens

    def find(self, request_id: str, attempt: Attempt) -> Sequence | None:
        """The sequence of exactly this attempt."""
        sequence = self._running.get(request_id) or self._waiting.get(request_id)
        return sequence if sequence is not None and sequence.attempt == attempt else None

    def detach(self, sequence: Sequence) -> None:
        """It goes on elsewhere. Its blocks lose it as an owner: share them first with whom they are for."""
        self._drop(sequence)

    def attach(self, sequence: Sequence, blocks: list[int], computed: int) -> None:
        """A sequence goes on here, of which the first `computed` tokens are in `blocks`; it owns them from now on.

        It runs at once, however many do already: it was running where it came from. With nothing computed it waits as
        any other, and its blocks are free: who runs has begun, and planners count on that. Raises ValueError as `add`
        does, and where the blocks are too few or nothing is left to compute; then they stay the caller's.
        """
        if not 0 <= computed < sequence.num_tokens:
            raise ValueError(f"{computed} of {sequence.num_tokens} tokens computed: one at least must be left")
        if self._pool.blocks_for(computed) > len(blocks):
            raise ValueError(f"{computed} tokens do not fit in {len(blocks)} blocks")
        self.add(sequence)
        if not computed:
            self._pool.release(blocks)
            return
        self._running[sequence.request_id] = self._waiting.pop(sequence.request_id)
        sequence.blocks, sequence.published, sequence.computed = blocks, 0, computed
        self._publish(sequence)

    def cancel(self, request_id: str, attempt: Attempt | None = None) -> Sequence | None:
        """Drops a sequence and frees its blocks; with `attempt`, only that attempt or an older one."""
        sequence = self._running.get(request_id) or self._waiting.get(request_id)
        if sequence is None or (attempt is not None and sequence.attempt > attempt):
            return None
        self._drop(sequence)
        return sequence

    def plan(self, now_us: int) -> StepPlan:
        """The next step, with preemptions applied and blocks allocated."""
        plan = self._planner.plan(list(self._running.values()), list(self._waiting.values()), self._pool, now_us)
        for sequence in plan.preempted:
            self._free_blocks(sequence)
            self._waiting[sequence.request_id] = self._running.pop(sequence.request_id)
        for sequence, _ in plan.given_up:
            self._drop(sequence)
        for chunk in plan.chunks:  # all of them before anything is allocated: that may empty the cache
            if chunk.sequence.request_id in self._waiting:
                self._admit(chunk)
        for chunk in plan.chunks:
            sequence = chunk.sequence
            needed = self._pool.blocks_for(chunk.start + chunk.length) - len(sequence.blocks)
            if needed > 0:
                blocks = self._pool.allocate(needed)
                if blocks is None:
                    raise AssertionError("the plan needs more blocks than are free")
                sequence.blocks.extend(blocks)
        return plan

    def commit(self, plan: StepPlan, sampled: Sampled) -> StepResult:
        """Takes what the executor made of the plan."""
        result = StepResult(given_up=plan.given_up, preempted=plan.preempted)
        tokens = iter(enumerate(sampled.tokens))
        for chunk in plan.chunks:
            sequence = chunk.sequence
            place, token = next(tokens) if chunk.samples else (-1, None)
            if self._running.get(sequence.request_id) is not sequence:
                continue  # cancelled while the step ran
            if not sequence.started:
                sequence.started = True
                result.started.append(sequence)
            sequence.computed = chunk.start + chunk.length
            self._publish(sequence)
            if token is not None:
                sequence.output.append(token)
                result.tokens.append((sequence, token, sampled.logprobs.get(place)))
                self._end_if_done(sequence, token, result)
        return result

    def check_integrity(self, held: Iterable[int] = ()) -> None:
        """At any time between steps: every block has the owners it should have. `held`: by others than sequences."""
        ours = (block for s in (*self._running.values(), *self._waiting.values()) for block in s.blocks)
        self._pool.check_integrity((*ours, *held))

    def _admit(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        self._running[sequence.request_id] = self._waiting.pop(sequence.request_id)
        self._pool.share(chunk.cached)
        sequence.blocks = list(chunk.cached)
        sequence.published = len(chunk.cached)
        sequence.computed, sequence.foreseen = chunk.start, 0
        if not sequence.started:
            sequence.cached_tokens = chunk.start

    def _publish(self, sequence: Sequence) -> None:
        whole = sequence.computed // self._pool.block_tokens
        if whole > sequence.published and self._pool.prefix_cache:
            digests = sequence.hashes(whole, self._pool.block_tokens)
            for index in range(sequence.published, whole):
                self._pool.publish(sequence.blocks[index], digests[index])
        sequence.published = whole

    def _end_if_done(self, sequence: Sequence, token: int, result: StepResult) -> None:
        made = len(sequence.output)
        if token in sequence.sampling.stop_token_ids and made > sequence.sampling.min_tokens:
            ended = Ended(sequence, sampling_pb2.FINISH_REASON_STOP_TOKEN, token)
        elif made >= sequence.max_tokens:
            ended = Ended(sequence, sampling_pb2.FINISH_REASON_LENGTH)
        else:
            return
        self._drop(sequence)
        self._lengths.learn(sequence.tier, made)
        result.ended.append(ended)

    def _drop(self, sequence: Sequence) -> None:
        self._running.pop(sequence.request_id, None)
        self._waiting.pop(sequence.request_id, None)
        self._free_blocks(sequence)

    def _free_blocks(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.published = 0
        sequence.computed = 0
