"""The router's core as a process of the virtual cell."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from virtual_network import Link
from virtual_process import SECOND, TICK_US, Process
from virtual_scheduler import Scheduler
from virtual_worker import Worker

from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_router.core import effects as router_effects
from hyperflexis_router.core.router import RouterCore
from hyperflexis_router.core.timing import RouterTiming

if TYPE_CHECKING:
    from virtual_cell import VirtualCell

HELLO_US = 2 * SECOND
"""A scheduler that has not welcomed by then is not the leader."""
TOUCH_US = SECOND
RECORD_US = 50_000


class Router(Process):
    def __init__(self, cell: VirtualCell, number: int, incarnation: int) -> None:
        super().__init__(cell)
        self.core = RouterCore(f"r{number}", incarnation, RouterTiming(confirm_close=True))
        self.session: Link | None = None
        self.feeds: dict[WorkerKey, Link] = {}
        self.wanted: dict[WorkerKey, str] = {}
        self._dial()
        self._tick()
        self._later(cell.chance.randrange(TOUCH_US), self._touch)

    def _dial(self) -> None:
        leader = self.cell.leaders.door()
        if not self.alive:
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
                lambda: leader.apply(leader.core.router_closed(box.get("session", 0), leader.now_us()))
            ),
            lambda: self.deliver(lambda: self._scheduler_closed(link)),
        )
        box["link"] = link
        leader.dialled.append(link)
        self.session = link
        self.cell.links.append(link)
        hello = router_session_pb2.RouterHello(
            router_id=self.core.router_id,
            incarnation=self.core.incarnation,
            protocol_version=PROTOCOL_VERSION,
            highest_fence=self.core.highest_fence,
        )
        link.send("up", router_session_pb2.RouterSessionRequest(hello=hello))
        self.cell.time.after(HELLO_US, lambda: self.deliver(lambda: self._expect_welcome(link)))

    def _expect_welcome(self, link: Link) -> None:
        if link is self.session and not self.core.session_open:
            link.close_from("up")
            self._scheduler_closed(link)

    def _at_scheduler(self, leader: Scheduler, box: dict[str, Any], message: Any) -> None:
        if message.HasField("hello"):
            box["session"] = leader.accept(box["link"])
            leader.apply(leader.core.router_opened(box["session"], message.hello, leader.now_us()))
        else:
            leader.apply(leader.core.router_message(box["session"], message, leader.now_us()))

    def _from_scheduler(self, link: Link, message: Any) -> None:
        if link is not self.session:
            return
        self.apply(self.core.scheduler_message(message, self.now_us()))
        if message.HasField("welcome") and link is self.session:
            self.apply(self.core.scheduler_opened(self.now_us()))

    def _scheduler_closed(self, link: Link) -> None:
        if link is self.session:
            self.session = None
            self.apply(self.core.scheduler_closed(self.now_us()))
            self.cell.time.after(100_000, lambda: self.deliver(self._dial))

    def apply(self, effects: list[router_effects.Effect]) -> None:
        for effect in effects:
            match effect:
                case router_effects.ToScheduler(message):
                    if self.session is not None and not self.cell.drop(message):
                        self.session.send("up", message)
                case router_effects.ToFeed(worker, message):
                    if worker in self.feeds and not self.cell.drop(message):
                        self.feeds[worker].send("up", message)
                case router_effects.OpenFeed(worker, address):
                    self.wanted[worker] = address
                    self._dial_feed(worker)
                case router_effects.CloseFeed(worker):
                    self.wanted.pop(worker, None)
                    link = self.feeds.pop(worker, None)
                    if link is not None:
                        link.close_from("up")
                case router_effects.Committed(request_id, start, packed, _):
                    client = self.cell.clients[request_id]
                    if client.router is self:
                        client.take(start, packed)
                case router_effects.Ended(request_id):
                    if self.cell.clients[request_id].router is self:
                        self.cell.clients[request_id].end(effect)
                    self._later(RECORD_US, partial(self._record_end, request_id))
                case router_effects.DropScheduler():
                    link = self.session
                    if link is not None:
                        link.close_from("up")
                        self._scheduler_closed(link)

    # --- Redis, as far as it decides who owns a request ---

    def _record_end(self, request_id: str) -> None:
        """The write is fenced, so that only the owner's worker may forget; with Redis away nobody waits for it."""
        if self.cell.redis_away or self.cell.clients[request_id].router is self:
            self.apply(self.core.closed(request_id, self.now_us()))
        else:
            self.apply(self.core.release(request_id, self.now_us()))

    def _touch(self) -> None:
        """Touches the records: hears which requests other routers have taken."""
        if not self.cell.redis_away:
            for client in self.cell.clients.values():
                if client.router is not self and client.request_id in self.core:
                    self.apply(self.core.release(client.request_id, self.now_us()))
        self._later(TOUCH_US, self._touch)

    def _later(self, delay_us: int, callback: Callable[[], None]) -> None:
        if self.alive:
            self.cell.time.after(delay_us, lambda: self.deliver(callback))

    # --- feeds ---

    def _dial_feed(self, key: WorkerKey) -> None:
        if not self.alive or key not in self.wanted:
            return
        worker = self.cell.workers.get(key.worker_id)
        if worker is None or not worker.alive or worker.key != key or self.cell.cut(self, worker):
            self.cell.time.after(300_000, lambda: self.deliver(lambda: self._dial_feed(key)))
            return
        box: dict[str, Any] = {}
        link = Link(
            self.cell.time,
            self.cell.chance,
            lambda m: worker.deliver(lambda: self._at_worker(worker, box, m)),
            lambda m: self.deliver(lambda: self._from_worker(key, link, m)),
            lambda: worker.deliver(lambda: worker.close_feed(box.get("feed", 0))),
            lambda: self.deliver(lambda: self._feed_closed(key, link)),
        )
        box["link"] = link
        self.feeds[key] = link
        self.cell.links.append(link)
        self.cell.feed_links.append((self, worker, link))
        hello = token_feed_pb2.FeedHello(router_id=self.core.router_id, protocol_version=PROTOCOL_VERSION)
        link.send("up", token_feed_pb2.TokenFeedRequest(hello=hello))

    def _at_worker(self, worker: Worker, box: dict[str, Any], message: Any) -> None:
        if message.HasField("hello"):
            box["feed"] = worker.accept_feed(box["link"], message.hello)
        else:
            worker.feed_message(box["feed"], message)

    def _from_worker(self, key: WorkerKey, link: Link, message: Any) -> None:
        if self.feeds.get(key) is not link:
            return
        if message.HasField("welcome"):
            self.apply(self.core.feed_opened(key, self.now_us()))
        else:
            self.apply(self.core.feed_message(key, message, self.now_us()))

    def _feed_closed(self, key: WorkerKey, link: Link) -> None:
        if self.feeds.get(key) is link:
            del self.feeds[key]
            self.apply(self.core.feed_closed(key, self.now_us()))
            self.cell.time.after(100_000, lambda: self.deliver(lambda: self._dial_feed(key)))

    def _tick(self) -> None:
        if self.alive:
            self.deliver(lambda: self.apply(self.core.tick(self.now_us())))
            self.cell.time.after(TICK_US, self._tick)
