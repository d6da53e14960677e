"""A router's core in a virtual network that delays, drops, repeats and cuts.

Token i is a function of the tokens before it, so one lost, repeated or spliced token breaks all later ones.
"""

from __future__ import annotations

import heapq
import zlib
from dataclasses import dataclass, field
from random import Random
from typing import Any

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as session_pb2
from hyperflexis.worker.v1 import token_feed_pb2 as feed_pb2
from hyperflexis_common.attempt import Attempt, WorkerKey
from hyperflexis_common.tokens import extend_crc, pack, unpack
from hyperflexis_router.core.effects import Committed, Effect, Ended, OpenFeed, ToFeed, ToScheduler
from hyperflexis_router.core.router import RouterCore
from hyperflexis_router.core.submission import NewRequest

LENGTH = 40
TICK_US = 100_000
CALM_AFTER_US = 20_000_000
"""From here on nothing breaks any more: every request must end."""
LIMIT_US = 90_000_000
WORKERS = [WorkerKey(name, index + 1) for index, name in enumerate("abc")]


def next_token(prefix: list[int]) -> int:
    return zlib.crc32(pack(prefix)) % 1_000


def reference(seed: int) -> list[int]:
    tokens = [seed]
    while len(tokens) < LENGTH:
        tokens.append(next_token(tokens))
    return tokens


@dataclass
class FakeAttempt:
    tokens: list[int]
    sent: int
    running: bool = True
    slot: int | None = None


@dataclass
class FakeWorker:
    """Generates a token per held attempt and step; what it says may be dropped or repeated."""

    key: WorkerKey
    world: World
    held: dict[tuple[str, Attempt], FakeAttempt] = field(default_factory=dict)
    granted: set[tuple[str, Attempt]] = field(default_factory=set)
    next_slot: int = 0

    def receive(self, message: feed_pb2.TokenFeedRequest) -> None:
        if message.HasField("start"):
            start = message.start
            key = (start.request_id, Attempt.of(start.attempt))
            if key in self.granted and key not in self.held:
                committed = unpack(start.committed)
                self.held[key] = FakeAttempt(committed or [unpack(start.prompt)[0]], len(committed))
        elif message.HasField("subscribe"):
            key = (message.subscribe.request_id, Attempt.of(message.subscribe.attempt))
            if key in self.held:
                self.held[key].sent = message.subscribe.next_index
                self.held[key].slot = None
            else:
                gone = feed_pb2.Gone(request_id=key[0], attempt=key[1].proto())
                self.say(feed_pb2.TokenFeedResponse(gone=gone))
        elif message.HasField("closed"):
            for held in [held for held in self.held if held[0] in message.closed.request_ids]:
                del self.held[held]

    def say(self, message: feed_pb2.TokenFeedResponse) -> None:
        random = self.world.random
        for _ in range(random.choice([0, 1, 1, 1, 1, 2]) if self.world.stormy else 1):
            self.world.from_worker(self.key, message)

    def step(self) -> None:
        for (request_id, attempt), held in list(self.held.items()):
            if held.running:
                held.tokens.append(next_token(held.tokens))
                held.running = len(held.tokens) < LENGTH
            if held.slot is None:
                held.slot, self.next_slot = self.next_slot, self.next_slot + 1
                bind = feed_pb2.Bind(slot=held.slot, request_id=request_id, attempt=attempt.proto())
                # A bind comes before its slot's first use: as reliable as the stream itself.
                self.world.from_worker(self.key, feed_pb2.TokenFeedResponse(bind=bind))
            fresh = held.tokens[held.sent :]
            step = feed_pb2.StepTokens()
            if fresh:
                step.slots, step.start_index, step.counts = pack([held.slot]), pack([held.sent]), pack([len(fresh)])
                step.crc, step.tokens = pack([extend_crc(0, pack(held.tokens))]), pack(fresh)
            if fresh and not held.running:
                step.finished.add(
                    slot=held.slot,
                    reason=sampling_pb2.FINISH_REASON_LENGTH,
                    output_tokens=LENGTH,
                    crc=extend_crc(0, pack(held.tokens)),
                )
            if fresh:
                held.sent = len(held.tokens)
                self.say(feed_pb2.TokenFeedResponse(step=step))


class World:
    """One router, one scheduler, three workers, and everything between them."""

    def __init__(self, seed: int, requests: int) -> None:
        self.random = Random(seed)
        self.now_us = 0
        self.stormy = True
        self.core = RouterCore("router", 1)
        self.workers = {key: FakeWorker(key, self) for key in WORKERS}
        self.feeds = dict.fromkeys(WORKERS, 0)
        """Life of each feed, counted up at each break; odd = down."""
        self.session_life = 0
        self.epoch, self.seq = 1, 0
        self.current: dict[str, tuple[Attempt, WorkerKey]] = {}
        self.committed: dict[str, list[int]] = {}
        self.ends: dict[str, list[Ended]] = {}
        self._queue: list[tuple[int, int, object, tuple[object, ...]]] = []
        self._order = 0
        self._last: dict[object, int] = {}
        self.requests = requests

    def later(self, lane: object, delay_us: int, call: object, *arguments: object) -> None:
        """Each lane is first in, first out; lanes overtake each other."""
        at = max(self.now_us + delay_us, self._last.get(lane, 0))
        self._last[lane] = at
        self._order += 1
        heapq.heappush(self._queue, (at, self._order, call, arguments))

    def delay_us(self) -> int:
        return self.random.choice([100, 1_000, 30_000, 400_000 if self.stormy else 2_000])

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Committed):
                tokens = self.committed.setdefault(effect.request_id, [])
                assert effect.start_index == len(tokens), "committed tokens are contiguous"
                assert effect.request_id not in self.ends, "nothing follows the end"
                tokens += unpack(effect.packed)
            elif isinstance(effect, Ended):
                self.ends.setdefault(effect.request_id, []).append(effect)
            elif isinstance(effect, ToScheduler):
                self.later("up", self.delay_us(), self.scheduler_receives, self.session_life, effect.message)
            elif isinstance(effect, ToFeed):
                lane = (effect.worker, "up")
                self.later(
                    lane,
                    self.delay_us(),
                    self.worker_receives,
                    effect.worker,
                    self.feeds[effect.worker],
                    effect.message,
                )
            elif isinstance(effect, OpenFeed):
                self.carry_out(self.core.feed_opened(effect.worker, self.now_us))

    # --- the wires ---

    def worker_receives(self, key: WorkerKey, life: int, message: feed_pb2.TokenFeedRequest) -> None:
        if life == self.feeds[key]:
            self.workers[key].receive(message)

    def from_worker(self, key: WorkerKey, message: feed_pb2.TokenFeedResponse) -> None:
        self.later((key, "down"), self.delay_us(), self.router_hears_worker, key, self.feeds[key], message)

    def router_hears_worker(self, key: WorkerKey, life: int, message: feed_pb2.TokenFeedResponse) -> None:
        if life == self.feeds[key] and life % 2 == 0:
            self.carry_out(self.core.feed_message(key, message, self.now_us))

    def to_router(self, **message: Any) -> None:
        response = session_pb2.RouterSessionResponse(epoch=self.epoch, **message)
        self.later("down", self.delay_us(), self.router_hears_scheduler, self.session_life, response)

    def router_hears_scheduler(self, life: int, message: session_pb2.RouterSessionResponse) -> None:
        if life == self.session_life:
            self.carry_out(self.core.scheduler_message(message, self.now_us))

    # --- the scheduler ---

    def scheduler_receives(self, life: int, message: session_pb2.RouterSessionRequest) -> None:
        if life != self.session_life or not message.HasField("submit"):
            return
        if self.stormy and self.random.random() < 0.1:
            return
        submit = message.submit
        held = self.current.get(submit.request_id)
        if held and not (submit.last_attempt_failed and Attempt.of(submit.last_attempt) >= held[0]):
            self.place(submit.request_id, *held, base=submit.committed_tokens)
        else:
            self.grant(submit.request_id, submit.committed_tokens)

    def grant(self, request_id: str, base: int) -> None:
        self.seq += 1
        attempt, worker = Attempt(self.epoch, self.seq), self.random.choice(WORKERS)
        if (old := self.current.get(request_id)) is not None:
            self.workers[old[1]].held.pop((request_id, old[0]), None)
        self.current[request_id] = (attempt, worker)
        self.workers[worker].granted.add((request_id, attempt))
        self.place(request_id, attempt, worker, base)

    def place(self, request_id: str, attempt: Attempt, worker: WorkerKey, base: int) -> None:
        started = (request_id, attempt) in self.workers[worker].held
        for _ in range(self.random.choice([1, 1, 2])):
            placed = session_pb2.Placed(
                request_id=request_id,
                attempt=attempt.proto(),
                worker=worker.proto(),
                base_index=base,
                started=started,
                worker_address="x:1",
            )
            self.to_router(placed=placed)

    # --- what goes wrong ---

    def misfortune(self) -> None:
        kind = self.random.choice(["feed", "session", "lost", "move", "forget", "nothing"])
        key = self.random.choice(WORKERS)
        if kind == "feed" and self.feeds[key] % 2 == 0:
            self.feeds[key] += 1
            self.carry_out(self.core.feed_closed(key, self.now_us))
            self.later((key, "dial"), self.random.choice([50_000, 1_000_000, 7_000_000]), self.feed_returns, key)
        elif kind == "session" and self.session_life % 2 == 0:
            self.session_life += 1
            self.epoch += self.random.choice([0, 1])
            self.carry_out(self.core.scheduler_closed(self.now_us))
            self.later("dial", self.random.choice([50_000, 2_000_000]), self.session_returns)
        elif kind in ("lost", "move", "forget") and self.current:
            request_id = self.random.choice(sorted(self.current))
            attempt, worker = self.current[request_id]
            if kind == "forget":
                self.workers[worker].held.pop((request_id, attempt), None)
            elif kind == "lost":
                self.workers[worker].held.pop((request_id, attempt), None)
                del self.current[request_id]
                self.to_router(lost=session_pb2.Lost(request_id=request_id, attempt=attempt.proto()))
            else:
                self.grant(request_id, self.random.choice([0, len(self.committed.get(request_id, []))]))

    def feed_returns(self, key: WorkerKey) -> None:
        self.feeds[key] += 1
        for held in self.workers[key].held.values():
            held.slot = None
        self.carry_out(self.core.feed_opened(key, self.now_us))

    def session_returns(self) -> None:
        self.session_life += 1
        self.carry_out(self.core.scheduler_opened(self.now_us))

    def run(self) -> None:
        entries = [session_pb2.WorkerEntry(identity=key.proto(), address="x:1", model="m") for key in WORKERS]
        self.carry_out(self.core.scheduler_opened(0))
        listing = session_pb2.RouterSessionResponse(epoch=1, workers=session_pb2.WorkerList(full=True, workers=entries))
        self.carry_out(self.core.scheduler_message(listing, 0))
        for index in range(self.requests):
            slo = slo_pb2.Slo(tier="chat")
            new = NewRequest(f"r{index}", "m", "t", pack([index]), sampling_pb2.SamplingParams(), LENGTH, slo, 0)
            self.carry_out(self.core.submit(new, 0))
        for at in range(0, LIMIT_US, TICK_US):
            while self._queue and self._queue[0][0] <= at:
                self.now_us, _, call, arguments = heapq.heappop(self._queue)
                call(*arguments)  # type: ignore[operator]
            self.now_us = at
            self.stormy = at < CALM_AFTER_US
            if self.stormy and self.random.random() < 0.3:
                self.misfortune()
            for worker in self.workers.values():
                worker.step()
            self.to_router(ping=session_pb2.Ping(id=at))
            self.carry_out(self.core.tick(at))
            if len(self.ends) == self.requests and not self.stormy:
                return
