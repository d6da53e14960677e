"""Two candidates for one office around one Redis, under any delays, stalls and outages."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace
from typing import Any

from hyperflexis_scheduler.core.election import Acquire, Election, Lead, Lease, Observe, Probe, Renew, StepDown, Timing

MS = 1_000
TIMING = Timing()
STEP_US = 100 * MS


class FakeRedis:
    """What the scripts of leader_lease do, in Python."""

    def __init__(self) -> None:
        self.counter = 0
        self.lease: Lease | None = None
        self.until_us = 0
        self.away = False

    def held(self, now_us: int) -> Lease | None:
        if self.lease is None or now_us >= self.until_us:
            return None
        return replace(self.lease, remaining_us=self.until_us - now_us)

    def put(self, leader_id: str, epoch: int, now_us: int) -> None:
        self.counter, self.until_us = epoch, now_us + TIMING.lease_us
        self.lease = Lease(leader_id, epoch, leader_id)

    def acquire(self, leader_id: str, floor: int, now_us: int) -> tuple[int, Lease | None]:
        held = self.held(now_us)
        if held is not None and held.leader_id not in ("", leader_id):
            return 0, held
        self.put(leader_id, max(self.counter, floor) + 1, now_us)
        return self.counter, None

    def renew(self, leader_id: str, epoch: int, now_us: int) -> tuple[bool, Lease | None]:
        held = self.held(now_us)
        rival = held is not None and (
            held.epoch > epoch or (held.epoch == epoch and held.leader_id not in ("", leader_id))
        )
        if self.counter > epoch or rival:
            return False, held
        self.put(leader_id, epoch, now_us)
        return True, None

    def release(self, leader_id: str, epoch: int, now_us: int) -> None:
        held = self.held(now_us)
        if held is not None and (held.leader_id, held.epoch) == (leader_id, epoch):
            self.put("", epoch, now_us)

    def empty(self) -> None:
        self.counter, self.lease = 0, None


class World:
    """Two candidates, one Redis, one queue of things that happen later."""

    def __init__(self, delays: Any) -> None:
        self.now_us = 0
        self.redis = FakeRedis()
        self.candidates = {name: Election(name, TIMING, 0) for name in "ab"}
        self.asleep_until_us = dict.fromkeys("ab", 0)
        self.led: list[tuple[int, str]] = []
        self._delays = delays
        self._later: list[tuple[int, int, Any]] = []
        self._order = itertools.count()

    def leaders(self) -> list[str]:
        return [name for name, candidate in self.candidates.items() if candidate.leading]

    def run(self, for_us: int) -> None:
        end_us = self.now_us + for_us
        while self.now_us < end_us:
            self.now_us += STEP_US
            while self._later and self._later[0][0] <= self.now_us:
                heapq.heappop(self._later)[2]()
            for name, candidate in self.candidates.items():
                if self.now_us >= self.asleep_until_us[name]:
                    self._perform(name, candidate.tick(self.now_us))

    def _after(self, action: Any) -> None:
        heapq.heappush(self._later, (self.now_us + self._delays(), next(self._order), action))

    def _perform(self, name: str, outputs: list[Any]) -> None:
        for output in outputs:
            match output:
                case Lead(fence):
                    self.led.append((fence.epoch, name))
                case StepDown(_, epoch):
                    self._after(lambda epoch=epoch: self._release(name, epoch))
                case _:
                    self._after(lambda output=output: self._arrive(name, output))

    def _release(self, name: str, epoch: int) -> None:
        if not self.redis.away:
            self.redis.release(name, epoch, self.now_us)

    def _arrive(self, name: str, output: Any) -> None:
        """The question reaches Redis, or the other candidate."""
        redis, now_us, away = self.redis, self.now_us, self.redis.away
        answer: tuple[Any, ...]
        match output:
            case Observe(ticket):
                answer = ("observed", ticket, not away, None if away else redis.held(now_us), redis.counter)
            case Acquire(ticket, floor):
                answer = ("acquired", ticket, *((0, None) if away else redis.acquire(name, floor, now_us)))
            case Renew(ticket, epoch):
                answer = ("renewed", ticket, not away, *((False, None) if away else redis.renew(name, epoch, now_us)))
            case Probe(ticket, address):
                awake = now_us >= self.asleep_until_us[address]
                answer = ("probed", ticket, awake and self.candidates[address].leading)
            case _:
                raise AssertionError(output)
        self._after(lambda: self._deliver(name, *answer))

    def _deliver(self, name: str, answer: str, *arguments: Any) -> None:
        if self.now_us < self.asleep_until_us[name]:
            self._later_when_awake(name, answer, *arguments)
            return
        self._perform(name, getattr(self.candidates[name], answer)(*arguments, self.now_us))

    def _later_when_awake(self, name: str, *arguments: Any) -> None:
        at_us = self.asleep_until_us[name]
        heapq.heappush(self._later, (at_us, next(self._order), lambda: self._deliver(name, *arguments)))
