"""Which worker keeps which prefixes: the index against sets, and what placement makes of it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.prefix import prefix_hashes
from hyperflexis_common.tokens import pack
from hyperflexis_scheduler.core.prefix_index import HASH_BYTES, PrefixIndex
from hyperflexis_scheduler.core.rules import Rules

CHAINS = [[bytes([chain]) * 15 + bytes([at]) for at in range(40)] for chain in range(3)]
lengths = st.integers(0, 40)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), lengths, st.sampled_from("++-x")), max_size=30), lengths
)
def test_as_many_blocks_as_are_kept_up_to_a_power_of_two(story, asked):
    index, kept = PrefixIndex(), {}
    for slot, chain, length, what in story:
        if what == "+":
            index.stored(slot, b"".join(CHAINS[chain][:length]))
            kept[slot, chain] = max(kept.get((slot, chain), 0), length)
        elif what == "-":
            # Blocks leave from the end of a chain, as those before are worth more.
            have = kept.get((slot, chain), 0)
            index.removed(slot, b"".join(CHAINS[chain][min(length, have) :]))
            kept[slot, chain] = min(length, have)
        else:
            index.forget(slot)
            kept = {key: blocks for key, blocks in kept.items() if key[0] != slot}
    slots = np.arange(6)
    for chain in range(3):
        true = np.array([min(kept.get((slot, chain), 0), asked) for slot in range(6)])
        found = index.cached_blocks(b"".join(CHAINS[chain][:asked]), slots)
        if found is None:
            assert not true.any()
            continue
        assert (found <= true).all() and found.max() == true.max(), "whoever is ahead is known exactly"
        exact = [index.blocks_of(slot, b"".join(CHAINS[chain][:asked])) for slot in range(6)]
        assert exact == true.tolist()
        assert (found >= true // 2).all() and ((found > 0) == (true > 0)).all()
    for slot in range(6):
        index.forget(slot)
    assert len(index) == 0


def hashes(tokens):
    return prefix_hashes(pack(tokens), 16)


class Scene:
    def __init__(self, stage):
        self.stage = stage
        self.router = stage.router()
        capabilities = capability_pb2.EngineCapabilities(context_length=10_000, hash_block_tokens=16)
        model = capability_pb2.StepTimeModel(c0_us=1_000, c2_us=100)
        self.workers = [stage.worker(name, capabilities=capabilities) for name in ("a", "b")]
        for worker in self.workers:
            worker.report(step_time=model)

    def keeps(self, worker, tokens, **news):
        worker.report(cache=ws.CacheNews(stored=hashes(tokens), **news))

    def place(self, request_id, tokens, more=64):
        prompt = [*tokens, *range(more)]
        self.router.submit(request_id, prompt_tokens=len(prompt), prefix_hashes=hashes(prompt))
        return self.router.last("placed")


CHAT = [7] * 800


def test_who_keeps_the_prefix_gets_the_request_although_it_has_more_to_do(stage):
    scene = Scene(stage)
    scene.keeps(scene.workers[1], CHAT)
    scene.workers[1].report(load={"queued_prefill_tokens": 500, "queued_prefill_us": 50_000, "running": 1})
    placed = scene.place("q", CHAT)
    assert placed.worker.worker_id == "b" and placed.decision.numbers["cached_tokens"] == 800
    assert placed.decision.numbers["own_prefill_us"] == 64 * 100
    assert stage.core.cell.fleet.by_id["b"].ledger.tokens == 64, "what it has is not charged"


def test_unless_the_wait_there_costs_more_than_it_saves(stage):
    scene = Scene(stage)
    scene.keeps(scene.workers[1], CHAT)
    scene.workers[1].report(load={"queued_prefill_tokens": 900, "queued_prefill_us": 90_000, "running": 1})
    assert scene.place("q", CHAT).worker.worker_id == "a"


def test_what_it_lost_counts_no_more(stage):
    scene = Scene(stage)
    scene.keeps(scene.workers[1], CHAT)
    scene.workers[1].report(cache=ws.CacheNews(removed=hashes(CHAT)))
    assert "cached_tokens" not in scene.place("q", CHAT).decision.numbers
    scene.keeps(scene.workers[1], CHAT)
    scene.keeps(scene.workers[1], [9] * 16, reset=True)
    assert "cached_tokens" not in scene.place("r", CHAT).decision.numbers


def test_another_life_keeps_nothing(stage):
    scene = Scene(stage)
    scene.keeps(scene.workers[1], CHAT)
    stage.worker("b", incarnation=2, capabilities=capability_pb2.EngineCapabilities(hash_block_tokens=16))
    assert len(stage.core.cell.fleet.prefixes) == 0


def test_it_can_be_switched_off(make_stage):
    scene = Scene(make_stage(rules=Rules(prefix_aware=False)))
    scene.keeps(scene.workers[1], CHAT)
    assert "cached_tokens" not in scene.place("q", CHAT).decision.numbers
    assert HASH_BYTES == 16
