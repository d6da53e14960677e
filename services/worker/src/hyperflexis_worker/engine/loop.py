"""The engine's own loop: take commands, plan, execute, commit, tell. No asyncio here."""

from __future__ import annotations

from typing import Protocol

import structlog

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.clock import Clock
from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_common.step_time_fit import StepTimeFit
from hyperflexis_worker.engine import frames
from hyperflexis_worker.engine.caches import Caches
from hyperflexis_worker.engine.command_socket import CommandSocket
from hyperflexis_worker.engine.step_log import StepLog
from hyperflexis_worker.kv.mover_thread import MoverThread
from hyperflexis_worker.kv.transport import Storage
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.sampled import Sampled, TokenLogprobs
from hyperflexis_worker.steps.sequence import Sequence
from hyperflexis_worker.steps.step_loop import Executor, StepLoop

log = structlog.get_logger(__name__)

IDLE_POLL_S = 0.2
STUCK_POLL_S = 0.01
BETWEEN_RATE = 0.03
"""Weight of one step in the mean of what passes between two."""
LEAST_STALL_US = 2_000
STEP_TIME_EVERY = 64
"""Steps between two reports of the fitted step-time model."""


class Engine(Protocol):
    """What the loop needs of an engine beyond an Executor: made by engine/factory.py."""

    @property
    def executor(self) -> Executor: ...
    @property
    def planner(self) -> StepPlanner: ...
    @property
    def pool(self) -> BlockPool: ...
    @property
    def lengths(self) -> OutputLengths: ...
    @property
    def step_time(self) -> StepTimeModel: ...
    @property
    def storage(self) -> Storage: ...
    @property
    def mover(self) -> MoverThread | None:
        """None: its caches do not move."""
        ...

    @property
    def ready(self) -> frames.EngineReady: ...


class EngineLoop:
    """Runs one engine until the shell says Stop or goes away."""

    def __init__(self, engine: Engine, commands: CommandSocket, clock: Clock, step_log: StepLog | None = None) -> None:
        self._engine = engine
        self._commands = commands
        self._clock = clock
        self._step_log = step_log
        self._loop = StepLoop(engine.planner, engine.pool, engine.lengths)
        self._caches = Caches(
            engine.pool, self._loop, engine.storage, engine.mover, clock, self._tell, engine.executor.forget
        )
        self._stuck = False
        """There is work, and all of it waits for blocks that others than sequences hold."""
        self._adds_applied = 0
        self._steps = 0
        self._ended_us: int | None = None
        """When the step before ended; None where something was waited for since."""
        self._between_mean_us = 0.0
        self._fit = StepTimeFit(engine.step_time)
        self._ended: list[frames.EndedSequence] = []
        self._unchecked = False
        """The pool has been used since its books were last checked."""

    def run(self) -> None:
        """Returns on Stop or when the shell is gone; anything else that is raised is a bug."""
        if self._engine.mover is not None:
            self._engine.mover.start()
        try:
            self._commands.send(self._engine.ready)
            while self._take_commands():
                if self._loop.busy:
                    self._step()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            log.info("the shell is gone, the engine leaves")
        finally:
            self._caches.close()

    def _take_commands(self) -> bool:
        changed = False
        busy, wait_s = self._loop.busy, 0.0
        if self._stuck or not busy:
            wait_s = self._caches.wait_s(STUCK_POLL_S if busy else IDLE_POLL_S)
            self._ended_us = None
        for command in self._commands.receive(wait_s, self._engine.mover):
            changed = True
            match command:
                case frames.Add():
                    self._add(command)
                case frames.Attach():
                    self._add(command.add, command.computed)
                case frames.Drop():
                    attempt = Attempt(command.leader_epoch, command.seq)
                    self._caches.dropped(command.request_id, attempt)
                    self._forget(self._loop.cancel(command.request_id, attempt))
                case frames.Revoked():
                    self._revoke(command)
                case frames.Stop():
                    return False
                case _:
                    self._caches.take(command)
        changed |= self._caches.turn()
        if not changed and not self._loop.busy and self._unchecked:
            # A whole poll without work: the check, milliseconds for a large pool, delays nobody.
            self._loop.check_integrity(self._caches.held)
            self._unchecked = False
        if changed and not self._loop.busy:
            self._unchecked = True
            cache = self._engine.pool.take_events()
            self._tell(
                frames.Stepped(
                    self._adds_applied,
                    self._load(),
                    ended=self._take_ended(),
                    cache=cache.changes,
                    cache_lost=cache.lost,
                )
            )
        return True

    def _add(self, add: frames.Add, attached: int | None = None) -> None:
        sequence = sequence_of(add)
        self._adds_applied = add.number
        if self._step_log is not None:
            self._step_log.added(add)
        try:
            if attached is None:
                self._loop.add(sequence)
            else:
                self._caches.attach(sequence, attached)
        except ValueError as error:
            self._ended.append(_ended(sequence, sampling_pb2.FINISH_REASON_ERROR, message=str(error)))

    def _revoke(self, command: frames.Revoked) -> None:
        attempt = Attempt(command.leader_epoch, command.seq)
        waiting = next((s for s in self._loop.waiting if s.request_id == command.request_id), None)
        dropped = waiting is not None and waiting.attempt == attempt and not waiting.started
        if dropped:
            self._forget(self._loop.cancel(command.request_id, attempt))
        self._tell(frames.Revoked(command.request_id, command.leader_epoch, command.seq, dropped))

    def _step(self) -> None:
        self._unchecked = True
        began = self._clock.now_us()
        plan = self._loop.plan(began)
        self._stuck = not plan.chunks and not plan.given_up
        if self._stuck:
            if not self._caches:
                raise RuntimeError("the planner made an empty step although sequences wait")
            return
        shape = plan.shape
        predicted = self._fit.model.predict_us(shape)
        sampled = self._engine.executor.execute(plan.chunks) if plan.chunks else Sampled([])
        took_us = self._clock.now_us() - began
        if plan.chunks:
            self._fit.observe(shape, took_us)
            between_us = self._between_us(began)
            # The fit is of the step alone; plans count with what passes before the next one can begin.
            model = self._fit.model.hosted(between_us)
            self._engine.planner.stepped(plan, predicted + between_us, took_us + between_us, model)
            self._ended_us = began + took_us
        result = self._loop.commit(plan, sampled)
        if self._step_log is not None:
            self._step_log.stepped(shape, began, took_us, predicted, result, self._loop.busy)
        self._steps += 1
        for end in result.ended:
            self._ended.append(_ended(end.sequence, end.reason, end.stop_token_id))
            self._forget(end.sequence)
        for sequence, _ in result.given_up:
            self._forget(sequence)
        cache = self._engine.pool.take_events()
        self._tell(
            frames.Stepped(
                adds_applied=self._adds_applied,
                load=self._load(),
                tokens=[_new_token(*new) for new in result.tokens],
                started=[(s.request_id, *s.attempt) for s in result.started],
                ended=self._take_ended(),
                given_up=[
                    frames.GivenUp(s.request_id, *s.attempt, decision.SerializeToString())
                    for s, decision in result.given_up
                ],
                preempted=[(s.request_id, *s.attempt, s.num_tokens) for s in result.preempted],
                duration_us=took_us,
                predicted_us=int(predicted),
                step_time=self._step_time(),
                cache=cache.changes,
                cache_lost=cache.lost,
            )
        )

    def _between_us(self, began_us: int) -> float:
        """What passes between two steps on average, the one that began then included. A stall is no new mean."""
        if self._ended_us is not None:
            passed_us = min(began_us - self._ended_us, 2 * self._between_mean_us + LEAST_STALL_US)
            self._between_mean_us += BETWEEN_RATE * (passed_us - self._between_mean_us)
        return self._between_mean_us

    def _step_time(self) -> frames.StepTime | None:
        if self._steps % STEP_TIME_EVERY:
            return None
        return frames.StepTime(self._fit.model, self._fit.errors)

    def _load(self) -> frames.EngineLoad:
        running = list(self._loop.running)
        waiting = list(self._loop.waiting)
        queued = self._engine.planner.queued(running, waiting, self._clock.now_us())
        return frames.EngineLoad(
            waiting=len(waiting),
            running=len(running),
            queued_prefill_tokens=queued.tokens,
            decode_context_tokens=sum(s.num_tokens for s in running if s.decoding),
            free_blocks=self._engine.pool.free,
            cached_blocks=self._engine.pool.cached,
            leased_blocks=self._caches.holds.leased_blocks,
            quarantined_blocks=self._caches.holds.quarantined_blocks,
            reserved_blocks=self._caches.reservations.reserved_blocks,
            steps=self._steps,
            queued_prefill_us=queued.prefill_us,
            queued_before_us=queued.before_us,
            prefill_share=self._engine.planner.prefill_share,
            pace=self._engine.planner.pace,
        )

    def _take_ended(self) -> list[frames.EndedSequence]:
        ended, self._ended = self._ended, []
        return ended

    def _forget(self, sequence: Sequence | None) -> None:
        if sequence is not None:
            self._engine.executor.forget(sequence)

    def _tell(self, message: frames.FromEngine) -> None:
        self._commands.send(message)


def sequence_of(add: frames.Add) -> Sequence:
    return Sequence(
        request_id=add.request_id,
        attempt=Attempt(add.leader_epoch, add.seq),
        prompt=packing.unpack(add.prompt),
        output=packing.unpack(add.committed),
        sampling=add.sampling,
        max_tokens=add.max_tokens,
        arrival_us=add.arrival_us,
        ttft_us=add.ttft_us,
        tpot_us=add.tpot_us,
        weight=add.weight,
        tier=add.tier,
        max_gap_us=add.max_gap_us,
        tenant=add.tenant,
        committed=packing.count(add.committed),
    )


def _ended(
    sequence: Sequence, reason: sampling_pb2.FinishReason.ValueType, stop_token_id: int = 0, message: str = ""
) -> frames.EndedSequence:
    return frames.EndedSequence(
        sequence.request_id, *sequence.attempt, int(reason), stop_token_id, message, sequence.cached_tokens
    )


def _new_token(sequence: Sequence, token: int, logprobs: TokenLogprobs | None) -> frames.NewTokens:
    return frames.NewTokens(
        sequence.request_id,
        *sequence.attempt,
        start_index=len(sequence.output) - 1,
        packed=packing.pack((token,)),
        logprobs=[] if logprobs is None else [logprobs],
    )
