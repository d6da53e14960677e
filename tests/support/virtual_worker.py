"""The worker's core and a modelled engine as a process of the virtual cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from virtual_client import VOCAB
from virtual_network import Link
from virtual_process import SECOND, TICK_US, Process
from virtual_scheduler import Scheduler

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import Attempt, WorkerKey
from hyperflexis_common.step_time import SEEDS
from hyperflexis_common.tokens import pack
from hyperflexis_worker.core import effects as worker_effects
from hyperflexis_worker.core.blocks import BlockPool
from hyperflexis_worker.core.engine_event import EndedAttempt, EngineEvent, NewTokens
from hyperflexis_worker.core.planner import BudgetPlanner
from hyperflexis_worker.core.step_loop import StepLoop
from hyperflexis_worker.core.worker import WorkerCore, WorkerProfile
from hyperflexis_worker.modelled import ModelledExecutor

if TYPE_CHECKING:
    from virtual_cell import VirtualCell


class Worker(Process):
    def __init__(self, cell: VirtualCell, worker_id: str, incarnation: int) -> None:
        super().__init__(cell)
        self.key = WorkerKey(worker_id, incarnation)
        capabilities = capability_pb2.EngineCapabilities(
            context_length=2_000, vocab_size=VOCAB, max_num_tokens=32, max_num_seqs=4
        )
        profile = WorkerProfile(self.key, f"{worker_id}:1", "m", b"fingerprint", capabilities, 40, 8)
        self.core = WorkerCore(profile)
        self.pool = BlockPool(40, 8)
        self.device = ModelledExecutor(VOCAB, SEEDS["test/tiny/tp1"], sleep=lambda _: None)
        self._new_engine()
        self.session: Link | None = None
        self.feeds: dict[int, Link] = {}
        self._next_feed = 1
        self._heard_us = 0
        self.left = False
        self._dial()
        self._tick()

    def _new_engine(self) -> None:
        self.pool = BlockPool(40, 8)
        self.loop = StepLoop(BudgetPlanner(32, 4, "edf"), self.pool)
        self.adds_applied = self.steps = 0
        self.engine_life = getattr(self, "engine_life", 0) + 1
        self.stepping = False
        self.engine_up = True

    # --- scheduler ---

    def _dial(self) -> None:
        leader = self.cell.leader
        if not self.alive or self.left:
            return
        if leader is None or not leader.alive:
            self.cell.time.after(100_000, lambda: self.deliver(self._dial))
            return
        box: dict[str, Any] = {}
        link = Link(
            self.cell.time,
            self.cell.chance,
            lambda m: leader.deliver(lambda: self._at_scheduler(leader, box, m)),
            lambda m: self.deliver(lambda: self._from_scheduler(link, m)),
            lambda: leader.deliver(
                lambda: leader.apply(leader.core.worker_closed(box.get("session", 0), leader.now_us()))
            ),
            lambda: self.deliver(lambda: self._scheduler_closed(link)),
        )
        box["link"] = link
        leader.dialled.append(link)
        self.session = link
        self._heard_us = self.now_us()
        self.cell.links.append(link)
        link.send("up", self.core.register_message())

    def _at_scheduler(self, leader: Scheduler, box: dict[str, Any], message: Any) -> None:
        if message.HasField("register"):
            box["session"] = leader.accept(box["link"])
            leader.apply(leader.core.worker_opened(box["session"], message.register, leader.now_us()))
        else:
            leader.apply(leader.core.worker_message(box["session"], message, leader.now_us()))

    def _from_scheduler(self, link: Link, message: Any) -> None:
        if link is not self.session:
            return
        self._heard_us = self.now_us()
        if message.HasField("not_leader"):
            self._drop_session()
        else:
            self.apply(self.core.scheduler_message(message, self.now_us()))

    def _scheduler_closed(self, link: Link) -> None:
        if link is self.session:
            self.session = None
            self.apply(self.core.scheduler_closed(self.now_us()))
            self.cell.time.after(100_000, lambda: self.deliver(self._dial))

    def _drop_session(self) -> None:
        link = self.session
        if link is not None:
            link.close_from("up")
            self._scheduler_closed(link)

    # --- feeds ---

    def accept_feed(self, link: Link, hello: token_feed_pb2.FeedHello) -> int:
        feed, self._next_feed = self._next_feed, self._next_feed + 1
        self.feeds[feed] = link
        self.apply(self.core.feed_opened(feed, hello, self.now_us()))
        return feed

    def close_feed(self, feed: int) -> None:
        if self.feeds.pop(feed, None) is not None:
            self.apply(self.core.feed_closed(feed, self.now_us()))

    # --- effects, engine, time ---

    def apply(self, effects: list[worker_effects.Effect]) -> None:
        for effect in effects:
            match effect:
                case worker_effects.ToScheduler(message):
                    if self.session is not None and not self.cell.drop(message):
                        self.session.send("up", message)
                case worker_effects.ToFeed(feed, message):
                    if feed in self.feeds and not self.cell.drop(message):
                        self.feeds[feed].send("down", message)
                case worker_effects.AddSequence() if not self.engine_up:
                    pass  # sent to a process that is dead, or not there yet
                case worker_effects.AddSequence(number, sequence):
                    self.adds_applied = number
                    self.loop.add(sequence)
                    self._schedule_step()
                case worker_effects.DropSequence(request_id, attempt):
                    self.loop.cancel(request_id, attempt)
                case worker_effects.RevokeSequence(request_id, attempt):
                    self._revoke(request_id, attempt)
                case worker_effects.DropScheduler():
                    self._drop_session()
                case worker_effects.Leave():
                    self.left = True

    def _revoke(self, request_id: str, attempt: Attempt) -> None:
        one = next((s for s in self.loop.waiting if s.request_id == request_id), None)
        dropped = one is not None and one.attempt == attempt and not one.started
        if dropped:
            self.loop.cancel(request_id, attempt)
        core, life = self.core, self.engine_life
        self.cell.time.after(
            500,
            lambda: self.deliver(
                lambda: (
                    self.apply(core.engine_revoked(request_id, attempt, dropped, self.now_us()))
                    if life == self.engine_life
                    else None
                )
            ),
        )

    def _schedule_step(self) -> None:
        if not self.stepping:
            self.stepping = True
            life = self.engine_life
            delay = self.cell.chance.randrange(1_000, 20_000)
            self.cell.time.after(delay, lambda: self.deliver(lambda: self._step(life)))

    def _step(self, life: int) -> None:
        if life != self.engine_life:
            return
        self.stepping = False
        if not self.loop.busy:
            return
        plan = self.loop.plan(self.now_us())
        result = self.loop.commit(plan, self.device.execute(plan.chunks))
        self.steps += 1
        running, waiting = list(self.loop.running), list(self.loop.waiting)
        event = EngineEvent(
            adds_applied=self.adds_applied,
            waiting=len(waiting),
            running=len(running),
            queued_prefill_tokens=sum(s.to_compute for s in (*running, *waiting) if not s.decoding),
            free_blocks=self.pool.free,
            steps=self.steps,
            tokens=[NewTokens(s.request_id, s.attempt, len(s.output) - 1, pack([t])) for s, t, _ in result.tokens],
            started=[(s.request_id, s.attempt) for s in result.started],
            ended=[
                EndedAttempt(e.sequence.request_id, e.sequence.attempt, e.reason, e.stop_token_id) for e in result.ended
            ],
        )
        self.loop.check_integrity()
        self.apply(self.core.engine_stepped(event, self.now_us()))
        if self.loop.busy:
            self._schedule_step()

    def kill_engine(self) -> None:
        self._new_engine()
        self.engine_up = False
        life = self.engine_life
        self.apply(self.core.engine_lost("killed", self.now_us()))
        self.cell.time.after(300_000, lambda: self.deliver(lambda: self._engine_ready(life)))

    def _engine_ready(self, life: int) -> None:
        if life == self.engine_life:
            self.engine_up = True
            self.apply(self.core.engine_ready(self.now_us()))

    def _tick(self) -> None:
        if self.alive:
            self.deliver(self._on_tick)
            self.cell.time.after(TICK_US, self._tick)

    def _on_tick(self) -> None:
        if self.session is not None and self.now_us() - self._heard_us > 3 * SECOND:
            self._drop_session()
        self.apply(self.core.tick(self.now_us()))
