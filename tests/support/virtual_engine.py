"""The engine process beside a virtual worker's shell, one life after the other.

As engine/handle.py and engine/loop.py have it: commands and events cross a socket in order, commands are taken in
between steps, and what is sent while there is no engine process is lost without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from virtual_client import VOCAB
from virtual_mover import VirtualMover
from virtual_process import SECOND

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.step_time import SEEDS
from hyperflexis_common.tokens import pack
from hyperflexis_worker.core.effects import AddSequence, AttachSequence, DropSequence, RevokeSequence
from hyperflexis_worker.core.engine_event import EndedAttempt, EngineEvent, NewTokens
from hyperflexis_worker.engine import frames
from hyperflexis_worker.engine.caches import Caches
from hyperflexis_worker.modelled import ModelledExecutor, ModelledPool
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.sampled import Sampled
from hyperflexis_worker.steps.sequence import Sequence
from hyperflexis_worker.steps.step_loop import StepLoop, StepResult
from hyperflexis_worker.steps.step_plan import StepPlan

if TYPE_CHECKING:
    from virtual_worker import Worker

MODEL = SEEDS["test/tiny/tp1"]
BLOCKS = 64
BLOCK_TOKENS = 8
MAX_NUM_TOKENS = 32
MAX_NUM_SEQS = 4

Command = AddSequence | AttachSequence | DropSequence | RevokeSequence | frames.ToEngine


class Engine:
    """`lost` counts the commands that met no process, `lives` the processes there have been."""

    def __init__(self, worker: Worker) -> None:
        self.worker = self._worker = worker
        self._time = worker.cell.time
        self._chance = worker.cell.chance
        self.lost = 0
        self.lives = 0
        self._hung_until_us = 0
        self._said_us = 0
        self._running = self._ready = self._turning = False
        self._begin(ready=True)

    @property
    def ready(self) -> bool:
        """It takes commands."""
        return self._ready

    # --- the shell's end ---

    def send(self, command: Command) -> None:
        if not self._running:
            self.lost += 1
            return
        self._inbox.append(command)
        self._wake(self._chance.randrange(50, 500))

    def kill(self) -> bool:
        """Dies now, with what it holds and what is on its way to it; the shell hears of it a little later. False
        where it was dead."""
        if not self._running:
            return False
        self._running = self._ready = False
        self._empty()
        self._hung_until_us = 0
        self._say(self._worker.engine_died)
        return True

    def restart(self) -> None:
        """A new process: from now on commands wait for it, and once it has loaded it takes them."""
        self._begin(ready=False)
        life = self.lives
        self._time.after(self._chance.randrange(SECOND // 5, 2 * SECOND), lambda: self._loaded(life))

    def hang(self, for_us: int) -> None:
        """SIGSTOP, then SIGCONT: in the middle of a step or between two."""
        self._hung_until_us = max(self._hung_until_us, self._time.now_us + for_us)

    # --- the process ---

    def _begin(self, ready: bool) -> None:
        self.lives += 1
        self._empty()
        self._inbox: list[Command] = []
        self._adds_applied = self._steps = 0
        self._ended: list[EndedAttempt] = []
        self._running, self._ready, self._turning = True, ready, False

    @property
    def name(self) -> str:
        """Of this life; nobody has it who is dead."""
        return f"{self._worker.key}/{self.lives}" if self._running else ""

    def _empty(self) -> None:
        """Nothing is here of an earlier life."""
        states = ModelledPool(BLOCKS, BLOCK_TOKENS)
        states.states[:] = 0xBAD  # what nobody has written to is wrong
        self.storage = states.storage(b"layout")
        self._device = ModelledExecutor(VOCAB, MODEL, states, sleep=lambda _: None)
        self.pool = BlockPool(BLOCKS, BLOCK_TOKENS)
        self.loop = StepLoop(StepPlanner(ChunkedPolicy(MODEL, MAX_NUM_TOKENS, MAX_NUM_SEQS, "edf")), self.pool)
        life = f"{self._worker.key}/{self.lives}"
        self._worker.cell.engines[life] = self
        mover = VirtualMover(self, lambda: self._wake(self._chance.randrange(20, 200)))
        self.caches = Caches(
            self.pool, self.loop, self.storage, mover, self._worker, partial(self._answer, life), self._device.forget
        )

    def _loaded(self, life: int) -> None:
        if life == self.lives and self._running:
            self._ready = True
            self._say(self._worker.engine_ready)
            self._wake(0)

    def _wake(self, delay_us: int) -> None:
        if self._ready and not self._turning:
            self._turning = True
            self._after(delay_us, self._turn)

    def _after(self, delay_us: int, callback: Callable[[], None]) -> None:
        """In this life, and not while it hangs."""
        life = self.lives

        def run() -> None:
            if life != self.lives or not self._running or not self._worker.alive:
                return
            if self._time.now_us < self._hung_until_us:
                self._time.after(self._hung_until_us - self._time.now_us, run)
            else:
                callback()

        self._time.after(delay_us, run)

    def _turn(self) -> None:
        commands, self._inbox = self._inbox, []
        for command in commands:
            self._take(command)
        changed = self.caches.turn() or bool(commands)
        if self.loop.busy:
            plan = self.loop.plan(self._worker.now_us())
            if plan.chunks or plan.given_up:
                self._after(self._chance.randrange(1_000, 20_000), lambda: self._step(plan))
                return
            assert self.caches, "the planner made an empty step although sequences wait"
        self._turning = False
        if changed:
            self.loop.check_integrity(self.caches.held)
            self._tell(StepResult())
        if self.loop.busy or self.caches:
            wait_s = self.caches.wait_s(0.01 if self.loop.busy else 1.0)
            self._after(int(wait_s * SECOND) + 100, lambda: self._wake(0))

    def _take(self, command: Command) -> None:
        match command:
            case AddSequence(number, sequence):
                self._adds_applied = number
                self._add(sequence, None)
            case AttachSequence(number, sequence, computed):
                self._adds_applied = number
                self._add(sequence, computed)
            case DropSequence(request_id, attempt):
                self.caches.dropped(request_id, attempt)
                self._forget(self.loop.cancel(request_id, attempt))
            case RevokeSequence(request_id, attempt):
                self._revoke(request_id, attempt)
            case _:
                self.caches.take(command)  # type: ignore[arg-type]

    def _answer(self, life: str, frame: frames.FromEngine) -> None:
        self._say(lambda: self._worker.engine_said(frame, life))

    def _add(self, sequence: Sequence, attached: int | None) -> None:
        try:
            if attached is None:
                self.loop.add(sequence)
            else:
                self.caches.attach(sequence, attached)
        except ValueError as error:
            reason = sampling_pb2.FINISH_REASON_ERROR
            self._ended.append(EndedAttempt(sequence.request_id, sequence.attempt, reason, message=str(error)))

    def _revoke(self, request_id: str, attempt: Attempt) -> None:
        one = next((s for s in self.loop.waiting if s.request_id == request_id), None)
        dropped = one is not None and one.attempt == attempt and not one.started
        if dropped:
            self._forget(self.loop.cancel(request_id, attempt))
        self._say(lambda: self._worker.engine_revoked(request_id, attempt, dropped))

    def _step(self, plan: StepPlan) -> None:
        result = self.loop.commit(plan, self._device.execute(plan.chunks) if plan.chunks else Sampled([]))
        self._steps += 1
        for end in result.ended:
            self._ended.append(
                EndedAttempt(
                    end.sequence.request_id,
                    end.sequence.attempt,
                    end.reason,
                    end.stop_token_id,
                    cached_tokens=end.sequence.cached_tokens,
                )
            )
            self._forget(end.sequence)
        for sequence, _ in result.given_up:
            self._forget(sequence)
        self.loop.check_integrity(self.caches.held)
        self._tell(result)
        self._turn()

    def _forget(self, sequence: Sequence | None) -> None:
        if sequence is not None:
            self._device.forget(sequence)

    def _tell(self, result: StepResult) -> None:
        running, waiting = list(self.loop.running), list(self.loop.waiting)
        ended, self._ended = self._ended, []
        given_up: list[tuple[str, Attempt, slo_pb2.Decision]] = [
            (s.request_id, s.attempt, decision) for s, decision in result.given_up
        ]
        cache = self.pool.take_events()
        event = EngineEvent(
            adds_applied=self._adds_applied,
            waiting=len(waiting),
            running=len(running),
            queued_prefill_tokens=sum(s.to_compute for s in (*running, *waiting) if not s.decoding),
            decode_context_tokens=sum(s.num_tokens for s in running if s.decoding),
            free_blocks=self.pool.free,
            steps=self._steps,
            tokens=[NewTokens(s.request_id, s.attempt, len(s.output) - 1, pack([t])) for s, t, _ in result.tokens],
            started=[(s.request_id, s.attempt) for s in result.started],
            ended=ended,
            given_up=given_up,
            preempted=[(s.request_id, s.attempt, s.num_tokens) for s in result.preempted],
            cache=cache.changes,
            cache_lost=cache.lost,
        )
        self._say(lambda: self._worker.engine_stepped(event))

    def _say(self, callback: Callable[[], None]) -> None:
        """To the shell: in order, and later if it is stopped. What was said before a death still arrives."""
        self._said_us = max(self._said_us, self._time.now_us + self._chance.randrange(20, 300))
        self._time.after(self._said_us - self._time.now_us, lambda: self._worker.deliver(callback))
