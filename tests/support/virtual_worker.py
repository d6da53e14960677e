"""The worker's core as a process of the virtual cell, and the shell around it: sessions, feeds, the engine's lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from virtual_client import VOCAB
from virtual_engine import BLOCK_TOKENS, BLOCKS, MAX_NUM_SEQS, MAX_NUM_TOKENS, Engine
from virtual_network import Link
from virtual_peers import LAYOUT, Peers
from virtual_process import SECOND, TICK_US, Process
from virtual_scheduler import Scheduler

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.attempt import Attempt, WorkerKey
from hyperflexis_worker.core import effects as worker_effects
from hyperflexis_worker.core.engine_event import EngineEvent
from hyperflexis_worker.core.profile import WorkerProfile
from hyperflexis_worker.core.worker import WorkerCore
from hyperflexis_worker.engine import frames
from hyperflexis_worker.translation import move_event, move_frame

if TYPE_CHECKING:
    from virtual_cell import VirtualCell

ENGINE_HUNG_US = 30 * SECOND
SILENCE_US = 3 * SECOND
US_PER_TOKEN = 500.0
"""What it says that a prefill takes: long enough for caches to be worth reading."""


class Worker(Process):
    def __init__(self, cell: VirtualCell, worker_id: str, incarnation: int) -> None:
        super().__init__(cell)
        self.key = WorkerKey(worker_id, incarnation)
        capabilities = capability_pb2.EngineCapabilities(
            context_length=2_000,
            vocab_size=VOCAB,
            max_num_tokens=MAX_NUM_TOKENS,
            max_num_seqs=MAX_NUM_SEQS,
            kv_ticket=capability_pb2.KV_TICKET_KIND_BLOCKS,
            hash_block_tokens=BLOCK_TOKENS,
        )
        address = f"{worker_id}:{incarnation}"
        step_time = capability_pb2.StepTimeModel(c2_us=US_PER_TOKEN)
        profile = WorkerProfile(
            self.key, address, "m", b"fingerprint", capabilities, BLOCKS, BLOCK_TOKENS, step_time=step_time
        )
        self.core = WorkerCore(profile)
        self.core.moves.links.layout = LAYOUT
        self.peers = Peers(self)
        self.engine = Engine(self)
        self.session: Link | None = None
        self.feeds: dict[int, Link] = {}
        self._next_feed = 1
        self._heard_us = 0
        self.left = False
        self.on_start_without_engine: Callable[[], None] = lambda: None
        """Called when a router's Start finds no engine that could take it."""
        self._dial()
        self._tick()

    @property
    def draining(self) -> bool:
        return self.core.readiness == capability_pb2.READINESS_DRAINING

    # --- scheduler ---

    def _dial(self) -> None:
        leader = self.cell.leaders.door()
        if not self.alive or self.left:
            return
        if leader is None:
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

    def feed_message(self, feed: int, message: token_feed_pb2.TokenFeedRequest) -> None:
        if message.HasField("start") and not self.engine.ready:
            self.on_start_without_engine()
        self.apply(self.core.feed_message(feed, message, self.now_us()))

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
                case worker_effects.AddSequence() | worker_effects.DropSequence() | worker_effects.RevokeSequence():
                    self.engine.send(effect)
                case worker_effects.AttachSequence():
                    self.engine.send(effect)
                case worker_effects.DropScheduler():
                    self._drop_session()
                case worker_effects.Leave():
                    self._leave()
                case _:
                    frame = move_frame(effect, self.now_us())
                    if frame is not None:
                        self.engine.send(frame)
                    else:
                        self.peers.carry_out(effect)

    def _leave(self) -> None:
        """Its last word to everybody is that it is gone."""
        self.left = True
        self.alive = False
        for link in (self.session, *self.feeds.values()):
            if link is not None:
                link.break_now()

    # --- what the engine says ---

    def engine_stepped(self, event: EngineEvent) -> None:
        self.apply(self.core.engine_stepped(event, self.now_us()))

    def engine_said(self, frame: frames.FromEngine, engine: str) -> None:
        """In a move. `engine`: the name of the life that says it."""
        event = move_event(frame, engine)
        if event is not None:
            self.apply(self.core.move_event(event, self.now_us()))
        else:
            self.peers.engine_said(frame)

    def engine_revoked(self, request_id: str, attempt: Attempt, dropped: bool) -> None:
        self.apply(self.core.engine_revoked(request_id, attempt, dropped, self.now_us()))

    def engine_died(self) -> None:
        """Its end has been read off the socket; another one is started after a wait."""
        self.core.moves.links.layout = b""
        self.peers.engine_lost()
        self.apply(self.core.engine_lost("killed", self.now_us()))
        wait_us = self.cell.chance.randrange(SECOND // 10, SECOND // 2)
        self.cell.time.after(wait_us, lambda: self.deliver(self.engine.restart))

    def engine_ready(self) -> None:
        self.core.moves.links.layout = LAYOUT
        self.apply(self.core.engine_ready(self.now_us()))

    def kill_engine(self) -> None:
        self.engine.kill()

    def _tick(self) -> None:
        if self.alive:
            self.deliver(self._on_tick)
            self.cell.time.after(TICK_US, self._tick)

    def _on_tick(self) -> None:
        if self.session is not None and self.now_us() - self._heard_us > SILENCE_US:
            self._drop_session()
        self.apply(self.core.tick(self.now_us()))
        if self.core.requests.load(self.now_us()).stalled_us > ENGINE_HUNG_US:
            self.engine.kill()
