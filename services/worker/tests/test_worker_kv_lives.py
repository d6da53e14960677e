"""An engine that ends and comes back while its caches move: what was meant for the old one must not reach the new."""

from __future__ import annotations

from cache_cell import cell, slow
from memory_wire import MemoryWire

PROMPT = list(range(100, 130))


def test_a_lease_of_an_older_life_is_none_of_the_next() -> None:
    """Leases are asked for by number alone, at an address where another engine may live by then: its blocks are not
    what was leased, and its leases are not the asker's to end."""
    leases = []
    for _ in range(2):
        with cell(slow("a"), slow("b"), wire=MemoryWire()) as both:
            a, _ = both.engines
            a.add("r", PROMPT, 60)
            both.until(lambda a=a: len(a.outputs.get("r", [])) >= 3)
            leases.append(both.export(a, "r").lease_id)
            assert not both.release(a, leases[0]).held or len(leases) == 1
    assert leases[0] != leases[1]
