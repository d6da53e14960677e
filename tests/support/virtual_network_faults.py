"""Connections that break, stall or are cut."""

from __future__ import annotations

from virtual_process import SECOND
from virtual_strike import Strike, busy_worker


def break_links(strike: Strike) -> bool:
    return strike.cell.break_links(strike.chance.uniform(0.2, 1.0)) > 0


def break_all_links(strike: Strike) -> bool:
    return strike.cell.break_links(1.0) > 0


def break_all_links_later(strike: Strike) -> bool:
    strike.soon(100_000, 400_000, break_all_links)
    return False


def break_session(strike: Strike) -> bool:
    session = busy_worker(strike).session
    if session is not None:
        session.break_now()
    return session is not None


def hold_feed(strike: Strike) -> bool:
    return strike.cell.hold_feed(strike.chance.randrange(10_000, 6 * SECOND))


def cut(strike: Strike) -> bool:
    return strike.cell.cut_router_from_worker(strike.chance.randrange(100_000, 12 * SECOND))
