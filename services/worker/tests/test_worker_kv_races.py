"""What goes wrong while a cache moves: cancels, leases that end, reads that come late, full or lost engines."""

from __future__ import annotations

from cache_cell import Cell, cell, slow
from engine_rig import VOCAB, EngineRig, on_wire
from memory_wire import MemoryWire

from hyperflexis_common.tokens import unpack
from hyperflexis_worker.engine import frames
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.engine.factory import build_engine
from hyperflexis_worker.modelled import reference_tokens

PROMPT = list(range(100, 130))


def test_cancel_in_the_middle_of_a_read_then_others_use_the_blocks() -> None:
    """The read goes on after its request is gone: poison, for whoever has its blocks."""
    wire = MemoryWire()
    with cell(slow("a"), slow("b", num_blocks=24, prefix_cache=False), wire=wire) as both:
        a, b = both.engines
        a.add("r", PROMPT, 60)
        both.until(lambda: len(a.outputs.get("r", [])) >= 3)
        wire.held = True
        exported = both.export(a, "r")
        assert both.reserve(b, "r", exported.computed).ok
        number = both.pull(b, a, "r", exported)
        both.until(lambda: wire.moves)
        wire.moves[0].move(2)
        b.send(kv.Unreserve("r", 1, 2))
        for name in ("x", "y", "z"):  # more than the pool holds without what is in quarantine
            b.add(name, PROMPT, 20)
        both.until(lambda: b.outputs.get("x"))
        assert b.load.quarantined_blocks == len(exported.blocks) and b.load.reserved_blocks == 0
        a.built.storage.write(exported.blocks, b"\xee" * len(exported.blocks) * a.built.storage.block_bytes)
        a.send(frames.Drop("r", 1, 1))
        wire.moves[0].move()  # late, and poison
        both.pulled(b, number)
        both.until(lambda: {"x", "y", "z"} <= b.ended.keys() and not b.load.quarantined_blocks)
        assert all(b.outputs[name] == reference_tokens(PROMPT, 7, 20, VOCAB) for name in ("x", "y", "z"))
        both.release(a, exported.lease_id)


def test_a_lease_that_ends_in_the_middle_of_a_read_is_told_and_nothing_of_it_is_used() -> None:
    wire = MemoryWire()
    with cell(slow("a", num_blocks=40, prefix_cache=False), slow("b"), wire=wire) as both:
        a, b = both.engines
        a.add("r", PROMPT, 60)
        both.until(lambda: len(a.outputs.get("r", [])) >= 3)
        wire.held = True
        last = both.export(a, "r", lease_us=30_000, final=True)
        assert both.reserve(b, "r", last.computed).ok
        number = both.pull(b, a, "r", last)
        both.until(lambda: wire.moves and a.load.leased_blocks == 0)
        a.add("other", list(range(500, 600)), 30)  # where r was
        both.until(lambda: "other" in a.ended)
        wire.moves[0].move()
        assert not both.pulled(b, number).error, "a one-sided read cannot tell"
        assert not both.release(a, last.lease_id).held
        b.send(kv.Unreserve("r", 1, 2))
        b.outputs["r"] = unpack(last.output)
        b.add("r", PROMPT, 60, committed=unpack(last.output), seq=2)
        both.until(lambda: "r" in b.ended)
        assert b.outputs["r"] == reference_tokens(PROMPT, 7, 60, VOCAB)


def test_an_export_that_nobody_collects_gives_its_blocks_back() -> None:
    with cell(slow("a"), slow("b"), wire=MemoryWire()) as both:
        a, _ = both.engines
        a.add("r", PROMPT, 60)
        both.until(lambda: len(a.outputs.get("r", [])) >= 3)
        last = both.export(a, "r", lease_us=30_000, final=True)
        both.until(lambda: a.load.running == 0 and a.load.leased_blocks == 0)
        assert a.load.free_blocks == a.built.pool.usable
        assert not both.release(a, last.lease_id).held
        assert both.export(a, "r").error == "not here"


def test_a_read_that_takes_too_long_has_failed_and_its_blocks_wait_for_it() -> None:
    wire = MemoryWire(held=True)
    with cell(slow("a"), slow("b"), wire=wire) as both:
        a, b = both.engines
        a.add("r", PROMPT, 100)
        both.until(lambda: len(a.outputs.get("r", [])) >= 3)
        exported = both.export(a, "r")
        assert both.reserve(b, "r", exported.computed).ok
        late = both.pulled(b, both.pull(b, a, "r", exported, within_us=5_000))
        assert "not read within 5000 us" in late.error and not late.bytes
        # Asked again, other blocks are read into: what comes late overwrites nothing.
        again = both.pull(b, a, "r", exported)
        both.until(lambda: len(wire.moves) == 2)
        assert not set(wire.moves[0].local) & set(wire.moves[1].local)
        wire.moves[1].move()
        assert not both.pulled(b, again).error
        a.built.storage.write([exported.blocks[0]], b"\xee" * a.built.storage.block_bytes)
        wire.moves[0].move()
        a.send(frames.Drop("r", 1, 1))
        b.send(frames.Attach(b.add_frame("r", PROMPT, 9, seq=2), exported.computed))
        both.until(lambda: "r" in b.ended and not b.load.quarantined_blocks)
        assert b.outputs["r"] == reference_tokens(PROMPT, 7, 9, VOCAB)
        both.release(a, exported.lease_id)


def test_the_target_has_no_blocks() -> None:
    with cell(slow("a", num_blocks=200), slow("b", num_blocks=21), wire=MemoryWire()) as both:
        a, b = both.engines
        a.add("r", list(range(200)), 30)
        b.add("own", PROMPT, 30)
        both.until(lambda: a.outputs.get("r") and b.outputs.get("own"))
        exported = both.export(a, "r")
        refused = both.reserve(b, "r", exported.computed)
        assert not refused.ok and 0 < refused.free_blocks < len(exported.blocks)
        nothing = both.pulled(b, both.pull(b, a, "r", exported))
        assert nothing.error == "no such blocks are reserved"
        both.release(a, exported.lease_id)
        both.until(lambda: "r" in a.ended and "own" in b.ended)
        assert a.outputs["r"] == reference_tokens(list(range(200)), 7, 30, VOCAB)
        assert b.outputs["own"] == reference_tokens(PROMPT, 7, 30, VOCAB)


def test_two_full_engines_that_swap_requests_get_on() -> None:
    """Each has taken all that is free for what comes; neither waits for the other for ever."""
    wire = MemoryWire(held=True)
    with cell(*[slow(name, num_blocks=41, prefix_cache=False) for name in "ab"], wire=wire) as both:
        a, b = both.engines
        for engine in (a, b):
            for number in range(3):
                engine.add(f"{engine.name[0]}{number}", PROMPT, 25 + number)
            both.until(lambda engine=engine: len(engine.outputs) == 3)
        exports = {}
        for engine, other in ((a, b), (b, a)):
            name = f"{engine.name[0]}2"
            exports[name] = both.export(engine, name)
            both.reserve(other, name, exports[name].computed)
        both.until(lambda: a.load.running + b.load.running and all(not e.load.waiting for e in (a, b)))
        for engine, other in ((a, b), (b, a)):
            name = f"{engine.name[0]}2"
            both.pull(other, engine, name, exports[name], within_us=50_000)
        both.until(lambda: all(f"{e.name[0]}{n}" in e.ended for e in (a, b) for n in (0, 1, 2)))
        for engine in (a, b):
            for number in range(3):
                expected = reference_tokens(PROMPT, 7, 25 + number, VOCAB)
                assert engine.outputs[f"{engine.name[0]}{number}"] == expected
        for move in wire.moves:
            move.fail()
        for engine, other in ((a, b), (b, a)):
            name = f"{engine.name[0]}2"
            other.send(kv.Unreserve(name, 1, 2))
            both.release(engine, exports[name].lease_id)


def test_a_sequence_waits_for_blocks_that_others_hold_and_the_engine_does_not_despair() -> None:
    with cell(slow("a", num_blocks=12, prefix_cache=False), slow("b"), wire=MemoryWire()) as both:
        a, _ = both.engines
        assert both.reserve(a, "guest", 40, seq=1).ok
        a.add("r", PROMPT, 4)
        both.until(lambda: a.load.waiting == 1 or a.said)
        a.send(kv.Unreserve("guest", 1, 1))
        both.until(lambda: "r" in a.ended)
        assert a.outputs["r"] == reference_tokens(PROMPT, 7, 4, VOCAB)


def test_too_much_is_not_pinned() -> None:
    """What runs here is leased without limit, and one that waits for its reader may be of any size; a second one
    stays, and goes on."""
    with cell(slow("a", num_blocks=26), slow("b"), wire=MemoryWire()) as both:
        a, _ = both.engines
        for name in ("r", "s"):
            a.add(name, PROMPT, 30)
        both.until(lambda: all(len(a.outputs.get(name, [])) >= 3 for name in ("r", "s")))
        assert all(len(both.export(a, name).blocks) > 3 for name in ("r", "s"))
        stopped = both.export(a, "r", final=True)
        assert len(stopped.blocks) > 7 and not stopped.error
        refused = both.export(a, "s", final=True)
        assert refused.full and refused.error.startswith("at most 7 of 25 blocks ") and not refused.blocks
        both.until(lambda: "s" in a.ended)
        assert a.outputs["s"] == reference_tokens(PROMPT, 7, 30, VOCAB)


def test_a_peer_that_was_restarted_under_its_old_name_is_linked_anew() -> None:
    wire = MemoryWire()
    settings = [slow("a"), slow("b")]
    first, target = EngineRig(on_wire(settings[0], wire, "a:1")), EngineRig(on_wire(settings[1], wire))
    both = Cell(first, target)
    assert both.link(target, first).transport == "peer"
    wire.held = True
    first.add("r", PROMPT, 300)
    both.until(lambda: len(first.outputs.get("r", [])) >= 3)
    exported = both.export(first, "r")
    assert both.reserve(target, "r", exported.computed).ok
    number = both.pull(target, first, "r", exported)
    both.until(lambda: wire.moves)
    first.send(frames.Drop("r", 1, 1))
    first.stop()
    again = EngineRig(on_wire(settings[0], wire, "a:1"))
    both.engines[0] = again
    target.send(kv.LinkPeer("a:1", again.built.ready.kv_metadata))
    wire.moves[0].fail()  # only now is the old life over for the target
    assert both.pulled(target, number).error
    linked = both.answer(target, kv.Linked)
    if not linked.transport:  # that the old link ended with its read may be told first
        linked = both.answer(target, kv.Linked)
    assert linked.transport == "peer"
    wire.held = False
    again.add("r2", PROMPT, 40)
    both.until(lambda: len(again.outputs.get("r2", [])) >= 3)
    both.move("r2", again, target, PROMPT, 40)
    both.until(lambda: "r2" in target.ended)
    assert target.outputs["r2"] == reference_tokens(PROMPT, 7, 40, VOCAB)
    target.send(kv.Unreserve("r", 1, 2))
    again.stop()
    target.stop()


def test_other_layouts_do_not_link() -> None:
    wire = MemoryWire()
    engines = [EngineRig(on_wire(slow("a", block_tokens=size), wire)) for size in (4, 8)]
    engines.append(EngineRig(build_engine(slow("c", kv_transports=[]))))
    both = Cell(*engines)
    a, b, without = engines
    assert both.link(a, b).error == "blocks there have 64 bytes, here 32"
    assert without.name == "" and "do not move here" in both.link(without, a).error
    assert not both.reserve(without, "r", 4).ok and "do not move here" in both.export(without, "r").error
    for engine in engines:
        engine.stop()
