"""One fault of a virtual cell: whom it may hit, who is there to notice, and whether it has landed."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from virtual_cell import VirtualCell
from virtual_client import VOCAB, Client, some_prompt
from virtual_worker import Worker


class Strike:
    """One fault on its way to its effect, which may come later. `landed`: it broke something while requests were
    live."""

    def __init__(self, cell: VirtualCell, chance: random.Random) -> None:
        self.cell = cell
        self.chance = chance
        self._began_us = cell.time.now_us if cell.live_clients() else -1
        self.landed = False

    def land(self) -> None:
        """It has broken something. What it has cancelled itself was live when it began."""
        live = self.cell.live_clients() or self.cell.time.now_us == self._began_us
        self.landed |= bool(live)

    def soon(self, low_us: int, high_us: int, then: Callable[[Strike], object]) -> None:
        self.cell.time.after(self.chance.randrange(low_us, high_us), partial(then, self))


Fault = Callable[[Strike], bool]
"""True = it has landed; what lands later, if at all, says so itself."""

# --- whom to hit -----------------------------------------------------------------------------------------


def busy_worker(strike: Strike) -> Worker:
    """One with requests, if there is one."""
    workers = [worker for _, worker in sorted(strike.cell.workers.items())]
    busy = [worker for worker in workers if worker.alive and worker.core.requests.unfinished]
    return strike.chance.choice(busy or workers)


def a_client(strike: Strike) -> Client | None:
    clients = strike.cell.live_clients()
    return strike.chance.choice(clients) if clients else None


# --- who is there to notice ------------------------------------------------------------------------------


def request(strike: Strike, tokens: int, prompt: list[int] | None = None) -> Client:
    cell, chance = strike.cell, strike.chance
    router = chance.randrange(len(cell.routers))
    return cell.generate(f"later-{len(cell.clients)}", prompt or some_prompt(chance), tokens, router)


def fresh_request(strike: Strike) -> bool:
    request(strike, strike.chance.randrange(1, 100))
    return True


def strange_request(strike: Strike) -> bool:
    """Its prompt begins like no other, so that no cache draws it to one worker."""
    request(strike, strike.chance.randrange(1, 100), strike.chance.sample(range(VOCAB), 40))
    return True


def company(strike: Strike) -> None:
    """One that ends soon, and one that is live for a while after that."""
    request(strike, 5)
    request(strike, 200)


def burst(strike: Strike) -> None:
    for _ in range(16):
        fresh_request(strike)
