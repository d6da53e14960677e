"""The cores of all three services in a virtual network: the protocol without sockets, at any speed, under any fault.

Nothing here knows the rules; it carries messages. What the rules promise is checked by `Client` (the tokens are
exactly the reference stream) and by `leaks()`.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from virtual_client import Client
from virtual_network import Link, VirtualTime
from virtual_process import SECOND, Process
from virtual_router import Router
from virtual_scheduler import Scheduler
from virtual_store import Store
from virtual_worker import Worker

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis_common.tokens import pack
from hyperflexis_router.core.submission import NewRequest, ResumedRequest
from hyperflexis_scheduler.core.memory import Memory


class VirtualCell:
    """One leader at a time, workers, routers and clients; faults by name."""

    def __init__(self, seed: int, workers: int = 3, routers: int = 2, policy: str = "least_requests") -> None:
        self.time = VirtualTime()
        self.chance = random.Random(seed)
        self.policy = policy
        self.links: list[Link] = []
        self.feed_links: list[tuple[Router, Worker, Link]] = []
        self.cuts: dict[tuple[Router, Worker], int] = {}
        self.drops: dict[str, int] = {}
        self.clients: dict[str, Client] = {}
        self.workers: dict[str, Worker] = {}
        self.routers: list[Router] = []
        self.replaced: list[Worker] = []
        """Stopped, and another process has their id since."""
        self.unaware: dict[tuple[Router, str], object] = {}
        """Routers that do not know yet that a client of theirs has resumed elsewhere."""
        self._incarnations = 0
        self._epoch = 1
        self.store = Store()
        self.blind = False
        """A leader has begun without what the one before left."""
        self.leader: Scheduler | None = Scheduler(self, 1, Memory())
        for number in range(workers):
            self.add_worker(f"w{number}")
        for number in range(routers):
            self.routers.append(Router(self, number, self._incarnation()))

    def _incarnation(self) -> int:
        self._incarnations += 1
        return self._incarnations

    def add_worker(self, worker_id: str) -> None:
        self.workers[worker_id] = Worker(self, worker_id, self._incarnation())

    def drop(self, message: Any) -> bool:
        """Is this message one that a fault swallows? `drops` counts, by kind, how many still go."""
        kind = message.WhichOneof("message")
        if self.drops.get(kind, 0) > 0:
            self.drops[kind] -= 1
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

    def resume(self, client: Client, router: int, unaware_us: int | None = None) -> None:
        """The client goes to (another) router with all the tokens it has. With `unaware_us`, the older router never
        hears of that, and ends the request so much later, when its client's grace is over."""
        target, older = self.routers[router], client.router
        client.gen += 1
        client.router = target
        if unaware_us is not None and older is not target:
            self._leave_unaware(older, client.request_id, unaware_us)
        else:
            older.deliver(lambda: self._release(older, client.request_id))
        new = ResumedRequest(**self._request(client), committed=pack(client.tokens))
        target.deliver(lambda: self._take_over(target, new))

    def _take_over(self, router: Router, new: ResumedRequest) -> None:
        self._release(router, new.request_id)
        router.apply(router.core.resume(new, router.now_us()))

    def _release(self, router: Router, request_id: str) -> None:
        self.unaware.pop((router, request_id), None)
        router.apply(router.core.release(request_id, router.now_us()))

    def _leave_unaware(self, router: Router, request_id: str, for_us: int) -> None:
        mark = self.unaware[(router, request_id)] = object()

        def end_grace() -> None:
            if self.unaware.get((router, request_id)) is mark:
                del self.unaware[(router, request_id)]
                router.apply(router.core.cancel(request_id, router.now_us()))

        self.time.after(for_us, lambda: router.deliver(end_grace))

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
        self.time.after(back_after_us, lambda: self._restart(worker))

    def _restart(self, dead: Worker) -> None:
        if self.workers.get(dead.key.worker_id) is dead:
            self.add_worker(dead.key.worker_id)

    def stop_worker(self, worker_id: str, for_us: int, replace: bool) -> None:
        """SIGSTOP, then CONT; with `replace`, another process has taken its id meanwhile."""
        worker = self.workers[worker_id]
        worker.stop_for(for_us)
        if replace:
            self.time.after(for_us // 2, lambda: self._replace(worker))

    def _replace(self, worker: Worker) -> None:
        # One that no leader has met yet cannot be told from the newer one when it comes.
        met = worker.core.highest_fence.epoch > 0
        if met and worker.alive and self.workers.get(worker.key.worker_id) is worker:
            self.replaced.append(worker)
            self.add_worker(worker.key.worker_id)

    def kill_router(self, number: int) -> None:
        """Its clients go to another router, its place is taken by a new process."""
        router = self.routers[number]
        router.alive = False
        self._break_links_of(router)
        self.routers[number] = Router(self, number, self._incarnation())
        for client in self.clients.values():
            if client.router is router and client.ended is None and not client.cancelled:
                other = self.chance.randrange(len(self.routers))
                delay = self.chance.randrange(1_000, 400_000)
                self.time.after(delay, partial(self._come_back, client, router, other))

    def _come_back(self, client: Client, dead: Router, other: int) -> None:
        if client.router is dead and client.ended is None and not client.cancelled:
            self.resume(client, other)

    def replace_leader(self, above: int = 0, gap_us: int = 1_500_000, blind: bool = False) -> None:
        """The leader dies; a standby leads with a higher epoch. `blind`: Redis does not answer it at first."""
        if self.leader is None:
            return
        old, self.leader = self.leader, None
        old.alive = False
        for link in old.dialled:
            link.break_now()
        self._epoch = max(self._epoch, above) + 1
        epoch = self._epoch
        self.time.after(gap_us, lambda: self._lead(epoch, blind))

    def _lead(self, epoch: int, blind: bool) -> None:
        self.blind |= blind
        self.leader = Scheduler(self, epoch, None if blind else self.store.read(self.time.now_us))

    def stop_leader(self, for_us: int) -> None:
        if self.leader is not None:
            self.leader.stop_for(for_us)

    def break_links(self, share: float) -> None:
        self.links = [link for link in self.links if not link.broken]
        for link in self.links:
            if self.chance.random() < share:
                link.break_now()

    def hold_feed(self, for_us: int) -> None:
        """One feed lags while the others advance."""
        live = [(r, w, link) for r, w, link in self.feed_links if not link.broken]
        if live:
            self.chance.choice(live)[2].hold("down", for_us)

    def cut_router_from_worker(self, for_us: int) -> None:
        worker = self.chance.choice(sorted(self.workers.values(), key=lambda w: w.key))
        router = self.chance.choice(self.routers)
        self.cuts[(router, worker)] = self.time.now_us + for_us
        for r, w, link in self.feed_links:
            if r is router and w is worker:
                link.break_now()

    def _break_links_of(self, process: Process) -> None:
        if isinstance(process, Worker | Router) and process.session is not None:
            process.session.break_now()
        for router, worker, link in self.feed_links:
            if process in (router, worker):
                link.break_now()

    # --- the end ---

    def settle(self, limit_s: int = 90) -> None:
        """No more faults: runs until every client has its end and everything is forgotten."""
        self.drops.clear()
        self.time.run_until(
            self.time.now_us + limit_s * SECOND, lambda: all(c.ended or c.cancelled for c in self.clients.values())
        )
        self.time.run_until(self.time.now_us + 40 * SECOND)

    def leaks(self) -> list[str]:
        """What should be gone and is not."""
        found = []
        for worker in self.workers.values():
            if worker.loop.busy or worker.pool.free != worker.pool.usable:
                found.append(f"{worker.key}: {worker.pool.usable - worker.pool.free} blocks")
            if worker.core.requests.unfinished:
                found.append(f"{worker.key}: {worker.core.requests.unfinished} requests")
        for router in self.routers:
            if len(router.core):
                found.append(f"{router.core.router_id}: {len(router.core)} requests")
        if self.leader is not None:
            cluster = self.leader.core.cluster(self.leader.now_us())
            if cluster.active or cluster.held:
                found.append(f"scheduler: {cluster.active} active, {cluster.held} held")
        return found
