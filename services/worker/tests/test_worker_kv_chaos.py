"""Two whole engines, one thread, no clock: every command in any order, transfers that move and end when they like.

Whatever is moved, cancelled, expired or torn, each sequence that ends has the tokens of an undisturbed run, and at the
end no block is held.
"""

from __future__ import annotations

from engine_side import VOCAB, Side
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from memory_wire import MemoryWire

from hyperflexis_common.attempt import Attempt
from hyperflexis_common.clock import FakeClock
from hyperflexis_common.tokens import unpack
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.modelled import reference_tokens
from hyperflexis_worker.steps.sequence import Sampling, Sequence

SIDES = st.integers(0, 1)


class TwoEngines(RuleBasedStateMachine):
    @initialize(
        blocks=st.tuples(st.integers(8, 30), st.integers(8, 30)),
        kinds=st.tuples(*[st.sampled_from(["budget", "slo", "scorpio"])] * 2),
        budget=st.integers(2, 20),
        limit=st.integers(1, 4),
    )
    def begin(self, blocks: tuple[int, int], kinds: tuple[str, str], budget: int, limit: int) -> None:
        self.clock, self.wire = FakeClock(), MemoryWire()
        self.sides = [
            Side(name, blocks[at], kinds[at], budget, limit, self.wire, self.clock) for at, name in enumerate("ab")
        ]
        for one, other in (self.sides, self.sides[::-1]):
            one.order(kv.LinkPeer(other.name, other.metadata.encode()))
            one.news()
        self.wire.held = True
        self.seen = 0
        self.names = 0
        self.exports: list[tuple[int, str, Attempt, kv.Exported]] = []
        """Side, request, attempt there, what was exported and is not released."""
        self.pulls: list[tuple[int, str, Attempt, kv.Exported]] = []
        self.gone: dict[tuple[str, Attempt], tuple[Sequence, kv.Exported]] = {}
        self.used: dict[tuple[str, Attempt], set[int]] = {}
        """Leases under which each was read."""
        self.read: set[tuple[int, str, Attempt]] = set()

    def sequences(self, side: int) -> list[Sequence]:
        loop = self.sides[side].loop
        return [*loop.running, *loop.waiting]

    @rule(side=SIDES, prompt=st.lists(st.integers(0, 9), min_size=1, max_size=14), more=st.integers(2, 30))
    def add(self, side: int, prompt: list[int], more: int) -> None:
        self.names += 1
        one = Sequence(f"r{self.names}", Attempt(1, 1), prompt, [], Sampling(seed=self.names), more)
        one.arrival_us, one.ttft_us, one.tpot_us = self.clock.now_us(), 10**12, 10**9
        if self.sides[side].loop.fits(one):
            self.sides[side].loop.add(one)

    @rule(side=SIDES, times=st.integers(1, 4))
    def step(self, side: int, times: int) -> None:
        for _ in range(times):
            self.clock.advance(1_000)
            if self.sides[side].loop.busy:
                for one in self.sides[side].step(self.clock.now_us()):
                    assert one.output == reference_tokens(one.prompt, one.sampling.seed, one.max_tokens, VOCAB)

    @rule(side=SIDES, data=st.data(), final=st.booleans(), lasts=st.sampled_from([2_000, 20_000, 10**9]))
    def export(self, side: int, data: st.DataObject, final: bool, lasts: int) -> None:
        self.step(side=side, times=data.draw(st.integers(0, 3)))
        here = [one for one in self.sequences(side) if one.computed] or self.sequences(side)
        if not here:
            return
        one = data.draw(st.sampled_from(here))
        command = kv.Export(1, one.request_id, *one.attempt, 0, 0, lasts, final)
        exported = self.sides[side].ask(command)
        assert isinstance(exported, kv.Exported)
        if exported.error:
            assert exported.full
            return
        self.exports.append((side, one.request_id, one.attempt, exported))
        if final:
            assert unpack(exported.output) == one.output
            self.gone[one.request_id, one.attempt] = one, exported

    @precondition(lambda self: self.exports)
    @rule(data=st.data(), room=st.integers(0, 6), within=st.sampled_from([1_500, 10**9]))
    def pull(self, data: st.DataObject, room: int, within: int) -> None:
        side, name, attempt, exported = data.draw(st.sampled_from(self.exports))
        target, later = self.sides[1 - side], Attempt(1, attempt.seq + 1)
        reserved = target.ask(kv.Reserve(name, *later, exported.computed + room))
        if reserved.ok and exported.blocks:
            blocks = list(exported.blocks)
            self.used.setdefault((name, attempt), set()).add(exported.lease_id)
            target.caches.take(kv.Pull(2, name, *later, self.sides[side].name, exported.lease_id, 0, blocks, within))

    @precondition(lambda self: any(not move.terminal for move in self.wire.moves))
    @rule(data=st.data(), blocks=st.integers(0, 20), fails=st.booleans())
    def move(self, data: st.DataObject, blocks: int, fails: bool) -> None:
        one = data.draw(st.sampled_from([move for move in self.wire.moves if not move.terminal]))
        one.move(blocks)
        if fails:
            one.fail()

    @rule(side=SIDES)
    def turn(self, side: int) -> None:
        self.sides[side].caches.turn()

    @rule(side=SIDES, data=st.data(), room=st.integers(0, 12), blocks=st.integers(0, 20))
    def hand_off(self, side: int, data: st.DataObject, room: int, blocks: int) -> None:
        """All of it at once, with a read that fails where it is not whole."""
        before = len(self.exports)
        self.export(side=side, data=data, final=True, lasts=10**9)
        if len(self.exports) == before:
            return
        _, name, attempt, exported = self.exports[-1]
        target, later = self.sides[1 - side], Attempt(1, attempt.seq + 1)
        target.ask(kv.Reserve(name, *later, exported.computed + room))
        if exported.blocks:
            peer, read = self.sides[side].name, list(exported.blocks)
            begun = len(self.wire.moves)
            target.caches.take(kv.Pull(2, name, *later, peer, exported.lease_id, 0, read, 10**9))
            target.caches.turn()
            for move in self.wire.moves[begun:]:  # none where too many are under way
                move.move(blocks)
                move.failed = not move.terminal
        self.attach_one(name, attempt)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def attach(self, data: st.DataObject) -> None:
        self.attach_one(*data.draw(st.sampled_from(sorted(self.gone))))

    def attach_one(self, name: str, attempt: Attempt) -> None:
        """As a shell must: released, and held until then; else computed anew."""
        one, exported = self.gone.pop((name, attempt))
        source = next(side for side, *rest in self.exports if rest == [name, attempt, exported])
        target, later = self.sides[1 - source], Attempt(1, attempt.seq + 1)
        target.caches.turn()  # what has been read by now
        # A shell has one lease for all its reads, and renews it: nothing counts that was read under one that is over.
        leases = self.used.pop((name, attempt), set())
        over = any(self.sides[source].caches.holds.get(lease_id) is None for lease_id in leases)
        released = self.sides[source].ask(kv.ReleaseLease(3, exported.lease_id))
        self.exports.remove((source, name, attempt, exported))
        moved = Sequence(name, later, one.prompt, unpack(exported.output), one.sampling, one.max_tokens)
        moved.arrival_us, moved.ttft_us, moved.tpot_us = one.arrival_us, one.ttft_us, one.tpot_us
        if not target.loop.fits(moved):
            target.ask(kv.Unreserve(name, *later))
            return
        if released.held and not over:
            target.caches.attach(moved, exported.computed)
        else:
            target.ask(kv.Unreserve(name, *later))
            target.loop.add(moved)

    @rule(side=SIDES, data=st.data())
    def cancel(self, side: int, data: st.DataObject) -> None:
        here = self.sequences(side)
        if here:
            one = data.draw(st.sampled_from(here))
            self.sides[side].caches.dropped(one.request_id, one.attempt)
            self.sides[side].loop.cancel(one.request_id, one.attempt)

    @precondition(lambda self: self.exports)
    @rule(data=st.data())
    def unreserve(self, data: st.DataObject) -> None:
        side, name, attempt, _ = data.draw(st.sampled_from(self.exports))
        self.sides[1 - side].caches.take(kv.Unreserve(name, 1, attempt.seq + 1))

    @rule(passes=st.sampled_from([1_000, 30_000]))
    def time_passes(self, passes: int) -> None:
        self.clock.advance(passes)

    @invariant()
    def sound(self) -> None:
        for side in getattr(self, "sides", ()):
            side.loop.check_integrity(side.caches.held)

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        for side in self.sides:
            for key in list(side.caches.reservations._held):
                side.ask(kv.Unreserve(key[0], *key[1]))
            side.caches.turn()
        for move in self.wire.moves:
            move.fail()
        self.clock.advance(10**10)
        for side in self.sides:
            side.caches.turn()
            assert not side.caches
            for _ in range(4_000):
                if not side.loop.busy:
                    break
                for one in side.step(self.clock.now_us()):
                    assert one.output == reference_tokens(one.prompt, one.sampling.seed, one.max_tokens, VOCAB)
            assert not side.loop.busy and side.pool.free == side.pool.usable


TestTwoEngines = TwoEngines.TestCase
TestTwoEngines.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


def test_a_transfer_that_is_never_over_is_told_once_and_keeps_its_blocks() -> None:
    clock, wire = FakeClock(), MemoryWire()
    a, b = [Side(name, 30, "budget", 20, 4, wire, clock) for name in "ab"]
    b.order(kv.LinkPeer("a", a.metadata.encode()))
    b.news()
    wire.held = True
    one = Sequence("r", Attempt(1, 1), [1] * 10, [], Sampling(), 9)
    a.loop.add(one)
    a.step(0)
    exported = a.ask(kv.Export(1, "r", 1, 1, 0, 0, 10**9))
    b.ask(kv.Reserve("r", 1, 2, 10))
    b.caches.take(kv.Pull(2, "r", 1, 2, "a", exported.lease_id, 0, exported.blocks, 1_000))
    b.caches.turn()
    b.said.clear()
    clock.advance(1_000)
    b.caches.turn()
    [late] = b.said
    assert isinstance(late, kv.Pulled) and late.error and b.caches.wait_s(100) == 10.0
    b.ask(kv.Unreserve("r", 1, 2))
    clock.advance(10_000_000)
    b.said.clear()
    b.caches.turn()
    b.caches.turn()
    [wedged] = b.said
    assert isinstance(wedged, kv.Wedged) and wedged.message == "1 transfers are not over (from a)"
    assert b.pool.free == b.pool.usable - len(exported.blocks) and b.caches.wait_s(0.2) == 0.2
