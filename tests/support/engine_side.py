"""One of several engines in a thread of the test's own: nothing happens unless it is asked to."""

from __future__ import annotations

from collections import deque
from typing import Any

from memory_wire import MemoryTransport, MemoryWire

from hyperflexis_common.clock import FakeClock
from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import SEEDS
from hyperflexis_worker.engine.caches import Caches
from hyperflexis_worker.kv.mover import Mover
from hyperflexis_worker.kv.peer_metadata import PeerMetadata
from hyperflexis_worker.modelled import ModelledExecutor, ModelledPool
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.scorpio_policy import ScorpioPolicy
from hyperflexis_worker.steps.sequence import Sequence
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.step_loop import StepLoop

VOCAB = 1_000
MODEL = SEEDS["test/tiny/tp1"]


def planner(kind: str, budget: int, limit: int) -> Any:
    lengths = OutputLengths()
    for _ in range(500):
        lengths.learn("", 0)  # growth is a surprise: sequences are preempted
    if kind == "slo":
        return StepPlanner(SloPolicy(MODEL, budget, limit, lengths), lengths)
    if kind == "scorpio":
        return StepPlanner(ScorpioPolicy(MODEL, budget, limit, lengths), lengths)
    return StepPlanner(ChunkedPolicy(MODEL, budget, limit), lengths)


class Side:
    """An engine without a socket, and a mover without a thread."""

    def __init__(self, name: str, blocks: int, kind: str, budget: int, limit: int, wire: MemoryWire, clock: FakeClock):
        self.name = name
        self.pool = BlockPool(blocks, 2)
        states = ModelledPool(blocks, 2)
        self.device = ModelledExecutor(VOCAB, MODEL, states, sleep=lambda _: None)
        self.planner = planner(kind, budget, limit)
        self.loop = StepLoop(self.planner, self.pool)
        storage = states.storage(b"x")
        transport = MemoryTransport(name, storage, wire)
        self.metadata = PeerMetadata(name, b"x", storage.block_bytes, {"peer": transport.metadata()})
        self._news: deque[Any] = deque()
        self.mover = Mover(self.metadata, [transport], clock, self._news.append, 3)
        self.said: list[Any] = []
        self.caches = Caches(self.pool, self.loop, storage, self, clock, self.said.append, self.device.forget)

    def order(self, order: Any) -> bool:
        self.mover.take(order)
        return True

    def close(self) -> None:
        """No thread to end."""

    def news(self) -> list[Any]:
        for _ in range(4):
            self.mover.turn()
        news = list(self._news)
        self._news.clear()
        return news

    def ask(self, command: Any) -> Any:
        self.said.clear()
        self.caches.take(command)
        return self.said[-1] if self.said else None

    def step(self, now_us: int) -> list[Sequence]:
        plan = self.loop.plan(now_us)
        if not plan.chunks:
            assert plan.given_up or self.caches, "nothing is done although nobody else holds a block"
            return []
        sampled = self.device.execute(plan.chunks)
        self.planner.stepped(plan, 1.0, 1, MODEL)
        return [end.sequence for end in self.loop.commit(plan, sampled).ended]
