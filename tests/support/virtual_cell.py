"""The cores of all three services in a virtual network: the protocol without sockets, at any speed, under any fault.

Nothing here knows the rules; it carries messages. What the rules promise is checked by `Client` (the tokens are
exactly the reference stream) and by virtual_end.py.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from virtual_client import Client
from virtual_engine import Engine
from virtual_leaders import Leaders
from virtual_network import Link, VirtualTime
from virtual_process import SECOND, Process
from virtual_router import Router
from virtual_scheduler import Scheduler
from virtual_worker import Worker

from hyperflexis.common.v1 import capability_pb2, sampling_pb2, slo_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2, worker_session_pb2
from hyperflexis_common.tokens import pack
from hyperflexis_router.core.submission import NewRequest, ResumedRequest
from hyperflexis_scheduler.core.actions import Outcome

LOOK_US = 100_000
WRITTEN_DOWN_US = 3 * SECOND // 2


class VirtualCell:
    """Leaders, workers, routers, clients, and what can be done to them; virtual_faults.py chooses."""

    def __init__(self, seed: int, workers: int = 3, routers: int = 2, policy: str = "least_requests") -> None:
        self.time = VirtualTime()
        self.chance = random.Random(seed)
        self.policy = policy
        self.links: list[Link] = []
        self.feed_links: list[tuple[Router, Worker, Link]] = []
        self.cuts: dict[tuple[Router, Worker], int] = {}
        self.drops: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.on_drop: dict[str, Callable[[], None]] = {}
        self.clients: dict[str, Client] = {}
        self.workers: dict[str, Worker] = {}
        self.routers: list[Router] = []
        self.engines: dict[str, Engine] = {}
        """By the name of each life."""
        self.retired: list[Worker] = []
        """Stopped, and another process has their id since."""
        self._incarnations = 0
        self._orders = 0
        self._redis_back_us = 0
        self.leaders = Leaders(self)
        self.leaders.begin()
        for number in range(workers):
            self.add_worker(f"w{number}")
        for number in range(routers):
            self.routers.append(Router(self, number, self._incarnation()))

    @property
    def leader(self) -> Scheduler | None:
        return self.leaders.newest

    @property
    def redis_away(self) -> bool:
        return self.time.now_us < self._redis_back_us

    def live_clients(self) -> list[Client]:
        return [c for c in self.clients.values() if c.ended is None and not c.cancelled]

    def _incarnation(self) -> int:
        self._incarnations += 1
        return self._incarnations

    def worker_at(self, address: str) -> Worker | None:
        """Whoever listens there."""
        return next((w for w in (*self.workers.values(), *self.retired) if w.core.profile.address == address), None)

    def migrate(self, client: Client, worker_id: str) -> bool:
        """Orders a move; False where there is no leader, or it says that this cannot be."""
        migrate = scheduler_service_pb2.MigrateRequest(request_id=client.request_id, target_worker_id=worker_id)
        return self._order(migrate=migrate)

    def set_role(self, worker_id: str, role: capability_pb2.Role.ValueType) -> bool:
        return self._order(worker_id=worker_id, set_role=worker_session_pb2.SetRole(role=role))

    def _order(self, **action: Any) -> bool:
        leader = self.leader
        if leader is None or not leader.alive:
            return False
        self._orders += 1
        request = scheduler_service_pb2.ApplyRequest(action_id=f"order-{self._orders}", **action)
        result, effects = leader.core.apply(request, leader.now_us())
        leader.apply(effects)
        return result.outcome is Outcome.APPLIED

    def add_worker(self, worker_id: str) -> None:
        self.workers[worker_id] = Worker(self, worker_id, self._incarnation())

    def drop(self, message: Any) -> bool:
        """Is this message one that a fault swallows? `drops` counts, by kind, how many still go, `dropped` those
        that went."""
        kind = message.WhichOneof("message")
        if self.drops[kind] > 0:
            self.drops[kind] -= 1
            self.dropped[kind] += 1
            self.on_drop.get(kind, lambda: None)()
            return True
        return False

    def cut(self, router: Router, worker: Worker) -> bool:
        return self.cuts.get((router, worker), 0) > self.time.now_us

    # --- clients ---

    def generate(self, request_id: str, prompt: list[int], max_tokens: int, router: int = 0) -> Client:
        client = Client(request_id, prompt, max_tokens, len(self.clients), self.routers[router])
        self.clients[request_id] = client
        new = NewRequest(**self._request(client))
        client.router.deliver(lambda: client.router.apply(client.router.core.submit(new, client.router.now_us())))
        return client

    def resume(self, client: Client, router: int) -> None:
        """The client goes to (another) router with all the tokens it has. Its older router hears of it from Redis,
        at its next touch of the record; until then it goes on as before."""
        target = self.routers[router]
        client.gen += 1
        client.router = target
        target.deliver(lambda: self._take_over(client, target, client.gen))

    def _take_over(self, client: Client, target: Router, gen: int) -> None:
        if client.gen != gen or client.ended is not None:
            return  # it has gone on to yet another router
        if client.request_id in target.core:
            target.apply(target.core.release(client.request_id, target.now_us()))
        new = ResumedRequest(**self._request(client), committed=pack(client.tokens))
        target.apply(target.core.submit(new, target.now_us()))

    def cut_stream(self, client: Client, grace_us: int) -> None:
        """The network between a client and its router breaks, the router lives: the client goes on at another one,
        and the older router ends the request with its grace, unless it has heard who has it."""
        older = client.router
        others = [number for number, router in enumerate(self.routers) if router is not older]
        self.time.after(self.chance.randrange(1_000, 400_000), partial(self._come_back, client, older, others))
        self.time.after(grace_us, lambda: older.deliver(lambda: self.end_grace(client, older)))

    def end_grace(self, client: Client, older: Router) -> None:
        """Of a client that went on elsewhere, at a router that may not know it yet."""
        if client.router is not older and client.request_id in older.core:
            older.apply(older.core.cancel(client.request_id, older.now_us()))

    def cancel(self, client: Client) -> None:
        client.cancelled = True
        router = client.router
        router.deliver(lambda: router.apply(router.core.cancel(client.request_id, router.now_us())))

    def _request(self, client: Client) -> dict[str, Any]:
        return {
            "request_id": client.request_id,
            "model": "m",
            "tenant": "t",
            "prompt": pack(client.prompt),
            "sampling": sampling_pb2.SamplingParams(seed=client.seed),
            "max_tokens": client.max_tokens,
            "slo": slo_pb2.Slo(tier="chat", ttft_us=SECOND, tpot_us=SECOND, weight=1.0),
            "received_us": client.router.now_us(),
            "detach_grace_us": 30 * SECOND,
            "owner_gen": client.gen,
        }

    # --- faults ---

    def kill_worker(self, worker_id: str, back_after_us: int = 500_000) -> None:
        """The process dies with everything it had; another comes under the same id."""
        worker = self.workers[worker_id]
        worker.alive = False
        self._break_links_of(worker)
        self.time.after(back_after_us, lambda: self._replace(worker))

    def stop_worker(self, worker_id: str, for_us: int, replace: bool) -> None:
        """SIGSTOP, then CONT; with `replace`, another process has taken its id meanwhile."""
        worker = self.workers[worker_id]
        worker.stop_for(for_us)
        if replace:
            self.time.after(for_us // 2, lambda: self._replace(worker))

    def _replace(self, worker: Worker) -> None:
        """Once: a worker that dies twice before it is back comes back as one process."""
        if self.workers.get(worker.key.worker_id) is worker:
            self.add_worker(worker.key.worker_id)
            if worker.alive:
                self.retired.append(worker)
                self._keep_stopped(worker, self.workers[worker.key.worker_id], 0)

    def _keep_stopped(self, older: Worker, newer: Worker, known_us: int) -> None:
        """It wakes only when the newest leader has known the newer life for long enough to have written it down:
        before that, nobody could tell which of the two took the other's place."""
        if not (older.alive and newer.alive) or known_us > WRITTEN_DOWN_US:
            return
        leader = self.leader
        known = leader is not None and leader.knows(newer.key) and not self.redis_away
        if older.stopped_until_us < self.time.now_us + 2 * LOOK_US:
            older.stop_for(2 * LOOK_US)
        self.time.after(LOOK_US, partial(self._keep_stopped, older, newer, known_us + LOOK_US if known else 0))

    def kill_router(self, number: int) -> None:
        """Its clients go to another router, its place is taken by a new process."""
        router = self.routers[number]
        router.alive = False
        self._break_links_of(router)
        self.routers[number] = Router(self, number, self._incarnation())
        for client in self.clients.values():
            if client.router is router and client.ended is None and not client.cancelled:
                delay = self.chance.randrange(1_000, 400_000)
                anywhere = list(range(len(self.routers)))
                self.time.after(delay, partial(self._come_back, client, router, anywhere))

    def _come_back(self, client: Client, left: Router, others: list[int]) -> None:
        if client.router is left and client.ended is None and not client.cancelled:
            self.resume(client, self.chance.choice(others))

    def replace_leader(self, above: int = 0, gap_us: int = 1_500_000, blind: bool = False) -> None:
        self.leaders.replace(above, gap_us, blind)

    def stop_leader(self, for_us: int) -> None:
        self.leaders.stop(for_us)

    def take_redis_away(self, for_us: int) -> None:
        self._redis_back_us = max(self._redis_back_us, self.time.now_us + for_us)

    def break_links(self, share: float) -> int:
        """How many broke."""
        self.links = [link for link in self.links if not link.broken]
        chosen = [link for link in self.links if self.chance.random() < share]
        for link in chosen:
            link.break_now()
        return len(chosen)

    def hold_feed(self, for_us: int) -> bool:
        """One feed lags while the others advance. False where none is open."""
        live = [(r, w, link) for r, w, link in self.feed_links if not link.broken]
        if live:
            self.chance.choice(live)[2].hold("down", for_us)
        return bool(live)

    def cut_router_from_worker(self, for_us: int) -> bool:
        """False where they had no feed to lose; then none can be opened."""
        worker = self.chance.choice(sorted(self.workers.values(), key=lambda w: w.key))
        router = self.chance.choice(self.routers)
        self.cuts[(router, worker)] = self.time.now_us + for_us
        lost = [link for r, w, link in self.feed_links if r is router and w is worker and not link.broken]
        for link in lost:
            link.break_now()
        return bool(lost)

    def _break_links_of(self, process: Process) -> None:
        if isinstance(process, Worker | Router) and process.session is not None:
            process.session.break_now()
        for router, worker, link in self.feed_links:
            if process is router or process is worker:
                link.break_now()

    # --- the end ---

    def settle(self, limit_s: int = 90) -> None:
        """No more faults: runs until every client has its end and everything is forgotten."""
        self.drops.clear()
        self.time.run_until(
            self.time.now_us + limit_s * SECOND, lambda: all(c.ended or c.cancelled for c in self.clients.values())
        )
        self.time.run_until(self.time.now_us + 40 * SECOND)
