"""Prefixes that one engine reads out of another's cache: whole engines behind their sockets."""

from __future__ import annotations

import pytest
from cache_cell import Cell, cell, slow
from engine_rig import SECOND_US, VOCAB, EngineEnd
from memory_wire import MemoryWire

from hyperflexis_common.prefix import HASH_BYTES, prefix_hashes
from hyperflexis_common.tokens import pack
from hyperflexis_worker.engine import frames
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.modelled import reference_tokens

PROMPT = list(range(100, 150))
HASHES = prefix_hashes(pack(PROMPT), 4)[: 12 * HASH_BYTES]
LATER = [*PROMPT[:48], *range(500, 530)]
"""Another prompt that begins alike."""


def serve(both: Cell, engine: EngineEnd, name: str, prompt: list[int], count: int = 5, seq: int = 1) -> int:
    """Tokens of it that were cached; what it makes must be right."""
    engine.add(name, prompt, count, seq=seq)
    both.until(lambda: name in engine.ended)
    assert engine.outputs[name] == reference_tokens(prompt, 7, count, VOCAB)
    return engine.ended[name].cached_tokens


def export(both: Cell, source: EngineEnd, hashes: bytes = HASHES, lease_us: int = 10 * SECOND_US) -> kv.Exported:
    number = both.number()
    source.send(kv.ExportPrefix(number, hashes, lease_us))
    return both.answer(source, kv.Exported, lambda exported: exported.number == number)


def reserve(both: Cell, target: EngineEnd, name: str = "q", hashes: bytes = HASHES) -> kv.Reserved:
    target.send(kv.ReservePrefix(name, 1, 2, hashes))
    return both.answer(target, kv.Reserved, lambda one: one.request_id == name)


def begin(both: Cell, source: EngineEnd, target: EngineEnd) -> tuple[kv.Exported, int]:
    """Up to the read that is under way, and the number that its answer will have."""
    reserved, exported = reserve(both, target), export(both, source)
    assert reserved.ok and not exported.error
    number = both.number()
    blocks = exported.blocks[reserved.cached :]
    target.send(kv.Pull(number, "q", 1, 2, source.name, exported.lease_id, reserved.cached, blocks, SECOND_US))
    return exported, number


def pull(both: Cell, source: EngineEnd, target: EngineEnd) -> None:
    exported, number = begin(both, source, target)
    assert not both.pulled(target, number).error
    assert both.release(source, exported.lease_id).held
    target.send(kv.KeepPrefix("q", 1, 2, HASHES))


@pytest.mark.parametrize("over", ["wire", "shells"])
@pytest.mark.parametrize("here", [0, 20])
def test_what_was_read_is_found_and_makes_the_same_tokens(over: str, here: int) -> None:
    with cell(slow("a"), slow("b"), wire=MemoryWire() if over == "wire" else None) as both:
        a, b = both.engines
        serve(both, a, "first", PROMPT)
        if here:
            assert serve(both, b, "part", PROMPT[:here]) == 0
        pull(both, a, b)
        assert serve(both, b, "q", LATER) == 48
        assert serve(both, b, "again", PROMPT) == 48, "it stays as if it had been computed there"
        both.until(lambda: a.load.leased_blocks == b.load.reserved_blocks == b.load.quarantined_blocks == 0)
        told = [change for said in b.said if isinstance(said, frames.Stepped) for change in said.cache]
        assert (True, HASHES[-HASH_BYTES:]) in told, "the scheduler hears of it"


def test_nothing_of_it_or_a_part_of_it_is_there() -> None:
    with cell(slow("a"), slow("b"), wire=MemoryWire()) as both:
        a, _ = both.engines
        assert export(both, a).error and not export(both, a).full
        serve(both, a, "first", PROMPT[:30])
        exported = export(both, a)
        assert len(exported.blocks) == 7 and exported.computed == 28
        assert both.release(a, exported.lease_id).held


def test_what_is_leased_is_not_evicted_and_more_than_a_share_of_the_pool_is_not_leased() -> None:
    with cell(slow("a", num_blocks=33), slow("b"), wire=MemoryWire()) as both:
        a, _ = both.engines
        serve(both, a, "first", PROMPT)
        first = export(both, a)
        assert len(first.blocks) == 9, "no more than 30 % of 32"
        serve(both, a, "other", list(range(600, 680)), 8)
        again = prefix_hashes(pack(range(600, 680)), 4)
        assert export(both, a, again).full
        assert both.release(a, first.lease_id).held
        later = export(both, a, again)
        assert len(later.blocks) == 9
        assert both.release(a, later.lease_id).held


def test_no_blocks_and_a_second_reservation_change_nothing() -> None:
    with cell(slow("a"), slow("b", num_blocks=9), wire=MemoryWire()) as both:
        _, b = both.engines
        assert not reserve(both, b).ok
        assert reserve(both, b, hashes=HASHES[: 4 * HASH_BYTES]).ok
        assert not reserve(both, b, hashes=HASHES[: 4 * HASH_BYTES]).ok
        b.send(kv.Unreserve("q", 1, 2))
        both.until(lambda: b.load.free_blocks == 8)


def test_a_read_that_fails_leaves_nothing_to_be_found() -> None:
    wire = MemoryWire(held=True)
    with cell(slow("a"), slow("b"), wire=wire) as both:
        a, b = both.engines
        serve(both, a, "first", PROMPT)
        exported, number = begin(both, a, b)
        both.until(lambda: wire.moves)
        wire.moves[0].move(5)
        wire.moves[0].fail()
        assert both.pulled(b, number).error
        b.send(kv.Unreserve("q", 1, 2))
        assert serve(both, b, "q", LATER) == 0
        assert both.release(a, exported.lease_id).held


@pytest.mark.parametrize("end", ["cancelled", "out of time"])
def test_what_is_still_being_written_belongs_to_nobody_else(end: str) -> None:
    wire = MemoryWire(held=True)
    with cell(slow("a"), slow("b"), wire=wire) as both:
        a, b = both.engines
        serve(both, a, "first", PROMPT)
        exported, number = begin(both, a, b)
        both.until(lambda: wire.moves)
        if end == "cancelled":
            b.send(frames.Drop("q", 1, 2))
        else:
            assert "within" in both.pulled(b, number).error
            b.send(kv.Unreserve("q", 1, 2))
        both.until(lambda: b.load.quarantined_blocks == 12 and b.load.reserved_blocks == 0)
        assert serve(both, b, "q", LATER, seq=3) == 0, "computed, while the read goes on"
        wire.moves[0].move()
        both.until(lambda: b.load.quarantined_blocks == 0)
        assert both.release(a, exported.lease_id).held
        assert serve(both, b, "again", LATER) == 76


def test_what_was_computed_meanwhile_stays_and_what_was_read_is_free() -> None:
    wire = MemoryWire(held=True)
    with cell(slow("a"), slow("b"), wire=wire) as both:
        a, b = both.engines
        serve(both, a, "first", PROMPT)
        exported, number = begin(both, a, b)
        assert serve(both, b, "quicker", PROMPT) == 0
        wire.moves[0].move()
        assert not both.pulled(b, number).error
        assert both.release(a, exported.lease_id).held
        b.send(kv.KeepPrefix("q", 1, 2, HASHES))
        assert serve(both, b, "q", LATER) == 48
        both.until(lambda: b.load.free_blocks == 255)


def test_what_was_not_read_is_not_kept_whatever_the_shell_believes() -> None:
    with cell(slow("a"), slow("b"), wire=MemoryWire()) as both:
        a, b = both.engines
        serve(both, a, "first", PROMPT)
        reserved, exported = reserve(both, b), export(both, a)
        assert reserved.ok
        number = both.number()
        b.send(kv.Pull(number, "q", 1, 2, a.name, exported.lease_id, 0, exported.blocks[:5], SECOND_US))
        assert not both.pulled(b, number).error
        b.send(kv.KeepPrefix("q", 1, 2, HASHES), kv.KeepPrefix("q", 1, 2, HASHES))
        assert serve(both, b, "q", LATER) == 20
        assert both.release(a, exported.lease_id).held


def test_a_lease_that_has_ended_was_not_held() -> None:
    with cell(slow("a"), slow("b"), wire=MemoryWire()) as both:
        a, _ = both.engines
        serve(both, a, "first", PROMPT)
        exported = export(both, a, lease_us=1)
        both.until(lambda: a.load.leased_blocks == 0)
        assert not both.release(a, exported.lease_id).held
