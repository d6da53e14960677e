"""Every fault of a virtual cell by name, and an account of what they hit."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import partial

from virtual_cell import VirtualCell
from virtual_client_faults import cancel, cancel_storm, resume_elsewhere, stream_cut, stream_cut_redis_away, two_resumes
from virtual_drain_faults import drain, drain_and_break_links, drain_and_kill, drain_everybody
from virtual_move_faults import flips, move, move_and, moves
from virtual_network_faults import break_all_links, break_all_links_later, break_links, break_session, cut, hold_feed
from virtual_process_faults import (
    hang_engine,
    kill_engine,
    kill_engine_under_load,
    kill_leader,
    kill_leader_unread,
    kill_router,
    kill_router_and_worker,
    kill_worker,
    stop_and_replace_worker,
    stop_and_replace_worker_late,
    stop_and_usurp_leader,
    stop_leader,
    stop_worker,
    two_leaders,
)
from virtual_strike import Fault, Strike, company

MESSAGES = (
    "placed", "queued", "lost", "run", "revoke", "drain", "registered",  # what the scheduler says
    "submit", "snapshot", "report", "cancel", "done",  # what it is told; cancel goes either way
    "start", "subscribe", "closed", "bind", "step", "gone",  # what routers and workers say to each other
)  # fmt: skip

FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        kill_worker, kill_engine, kill_engine_under_load, hang_engine, stop_worker, stop_and_replace_worker,
        stop_and_replace_worker_late, kill_leader, kill_leader_unread, stop_leader, stop_and_usurp_leader, two_leaders,
        kill_router, kill_router_and_worker, break_links, hold_feed, cut,
        resume_elsewhere, two_resumes, stream_cut, stream_cut_redis_away, cancel, cancel_storm,
        drain, drain_and_kill, drain_and_break_links, drain_everybody, move, moves, flips,
    )
}  # fmt: skip
FAULTS |= {
    f"moves_and_{then.__name__}": partial(move_and, then)
    for then in (
        kill_worker, kill_engine, hang_engine, stop_worker, stop_and_replace_worker, kill_leader, kill_router,
        break_session, break_all_links, resume_elsewhere, cancel_storm, drain, flips,
    )
}  # fmt: skip
TRIGGERS: dict[str, Fault] = {
    "drop_lost": kill_worker,
    "drop_queued": drain_everybody,
    "drop_revoke": drain,
    "drop_drain": drain,
    "drop_registered": break_session,
    "drop_snapshot": break_session,
    "drop_cancel": cancel,
    "drop_subscribe": break_all_links_later,
    "drop_gone": kill_engine,
}
"""What makes a message come; all others come with any request, from its Submit to its Closed, or by themselves."""
NAMES = (*FAULTS, *(f"drop_{kind}" for kind in MESSAGES))


@dataclass
class Account:
    """`made`: faults that were tried. `landed`: those that broke something while requests were live."""

    strikes: list[Strike] = field(default_factory=list)

    @property
    def made(self) -> int:
        return len(self.strikes)

    @property
    def landed(self) -> int:
        return sum(strike.landed for strike in self.strikes)

    def make(self, cell: VirtualCell, name: str, chance: random.Random) -> None:
        strike = Strike(cell, chance)
        self.strikes.append(strike)
        if name in FAULTS:
            if FAULTS[name](strike):
                strike.land()
            return
        kind = name.removeprefix("drop_")
        company(strike)
        cell.on_drop[kind] = strike.land
        cell.drops[kind] += 1
        if name in TRIGGERS:
            TRIGGERS[name](strike)
