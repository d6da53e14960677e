"""Who is told to read a prefix from whom, and what placement counts on."""

from __future__ import annotations

import pytest

from hyperflexis.common.v1 import capability_pb2, movement_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.prefix import prefix_hashes
from hyperflexis_common.tokens import pack
from hyperflexis_scheduler.core.dispatch_policy import RoundRobin
from hyperflexis_scheduler.core.rules import Rules

BYTES_PER_TOKEN = 131_072
CHAT = [7] * 3_200
CAPABILITIES = {
    "context_length": 10_000,
    "hash_block_tokens": 16,
    "kv_ticket": capability_pb2.KV_TICKET_KIND_BLOCKS,
}


def hashes(tokens):
    return prefix_hashes(pack(tokens), 16)


class Scene:
    """Worker `b` keeps CHAT, `a` nothing; a token takes 100 us to compute."""

    def __init__(self, stage, names="ab", link=True, gbps=100.0, us_per_token=100, **capabilities):
        self.stage = stage
        self.router = stage.router()
        self.us_per_token = us_per_token
        kinds = capability_pb2.EngineCapabilities(**{**CAPABILITIES, **capabilities})
        self.workers = {name: stage.worker(name, capabilities=kinds) for name in names}
        for name, worker in self.workers.items():
            links = [self.link(peer, gbps) for peer in names if peer != name] if link else []
            worker.report(load=self.load(), step_time=self.model(), links=links)
        self.keeps("b", CHAT)

    def load(self, **more):
        kv = capability_pb2.KvPoolStats(block_tokens=16, block_bytes=16 * BYTES_PER_TOKEN)
        return {"kv": kv, **more}

    def model(self):
        return capability_pb2.StepTimeModel(c0_us=1_000, c2_us=self.us_per_token)

    @staticmethod
    def link(peer, gbps=100.0, incarnation=1, transport="nixl"):
        ref = movement_pb2.WorkerRef(worker_id=peer, incarnation=incarnation, address=f"{peer}:1")
        return movement_pb2.LinkStatus(peer=ref, transport=transport, gigabytes_per_s=gbps)

    def keeps(self, name, tokens):
        worker = self.workers[name]
        worker.report(load=self.load(), cache=ws.CacheNews(stored=hashes(tokens)), links=self.links_of(name))

    def links_of(self, name):
        return list(self.stage.core.cell.fleet.by_id[name].links.values())

    def busy(self, name, for_us):
        load = self.load(queued_prefill_tokens=for_us // self.us_per_token, queued_prefill_us=for_us, running=1)
        self.workers[name].report(load=load, links=self.links_of(name))

    def place(self, request_id, tokens=CHAT, more=64, slo=None):
        prompt = [*tokens, *range(more)]
        self.router.submit(request_id, slo, prompt_tokens=len(prompt), prefix_hashes=hashes(prompt))
        return self.router.last("placed")

    def run(self, name):
        return self.workers[name].last("run")


def test_who_is_idle_reads_what_the_busy_one_keeps(stage):
    scene = Scene(stage)
    scene.busy("b", 10**6)
    placed = scene.place("q")
    numbers = placed.decision.numbers
    assert placed.worker.worker_id == "a" and numbers["pulled_tokens"] == 3_200 and "cached_tokens" not in numbers
    assert numbers["own_prefill_us"] == 64 * 100
    assert 75_000 < numbers["read_us"] < 85_000, "half a step of the other engine, and the link"
    source = scene.run("a").prefix_source
    assert (source.worker.worker_id, source.worker.incarnation, source.worker.address) == ("b", 1, "b:1")
    assert source.tokens == 3_200
    assert stage.core.cell.fleet.by_id["a"].ledger.tokens == 64, "what it reads is not charged"
    (place,) = [note for note in stage.core.explain("q", stage.now_us) if note.kind == "place"]
    assert place.numbers["pulled_tokens"] == 3_200


def test_who_keeps_it_and_has_nothing_to_do_gets_it(stage):
    scene = Scene(stage)
    placed = scene.place("q")
    assert placed.worker.worker_id == "b" and placed.decision.numbers["cached_tokens"] == 3_200
    assert not scene.run("b").HasField("prefix_source")


def test_a_part_that_it_keeps_itself_is_not_read(stage):
    scene = Scene(stage)
    scene.keeps("a", CHAT[:1_280])
    scene.busy("b", 10**6)
    numbers = scene.place("q").decision.numbers
    assert (numbers["cached_tokens"], numbers["pulled_tokens"]) == (1_280, 1_920)
    assert scene.run("a").prefix_source.tokens == 3_200


@pytest.mark.parametrize(
    "case", ["slow link", "little", "no link", "link down", "older life", "off", "engine", "busy", "late"]
)
def test_what_is_no_clear_gain_is_computed(make_stage, case):
    stage = make_stage(Rules(prefix_pulls=case != "off"))
    more = {"kv_ticket": capability_pb2.KV_TICKET_KIND_NONE} if case == "engine" else {}
    scene = Scene(stage, link=case != "no link", gbps=1.0 if case == "slow link" else 100.0, **more)
    if case == "busy":
        scene.busy("a", 100_000)
    if case == "little":
        scene.keeps("a", CHAT[:2_800])
    if case in ("link down", "older life"):
        link = scene.link("b", transport="") if case == "link down" else scene.link("b", incarnation=9)
        scene.workers["a"].report(load=scene.load(), links=[link])
    scene.busy("b", 10**6)
    placed = scene.place("q", slo=stage.slo(ttft_ms=500) if case == "late" else None)
    assert placed.worker.worker_id == "a" and "pulled_tokens" not in placed.decision.numbers
    assert not scene.run("a").HasField("prefix_source")
    orders = scene.workers["a"].all("link")
    assert [order.peer.worker_id for order in orders] == ["b"] * (case in ("no link", "link down", "older life"))
    scene.place("r")
    assert len(scene.workers["a"].all("link")) == len(orders), "one order is enough for a while"


@pytest.mark.parametrize(("workers", "ordered"), [(3, 2), (17, 16), (18, 0)])
def test_in_a_small_pool_everybody_is_linked_to_everybody(stage, workers, ordered):
    scene = Scene(stage, names=["b", *(str(number) for number in range(workers - 1))], link=False)
    stage.tick(3_000, scene.router, *scene.workers.values())
    assert {len(worker.all("link")) for worker in scene.workers.values()} == {ordered}


def test_reads_out_of_one_worker_follow_one_another(stage):
    scene = Scene(stage, names="abcdef", gbps=20.0)
    scene.busy("b", 10**7)
    placed = [scene.place(f"q{number}") for number in range(3)]
    read_us = [one.decision.numbers.get("read_us", 0) for one in placed]
    assert 0 < read_us[0] < read_us[1] and read_us[2] == 0, "one more would not come in time"
    stage.tick(100)
    assert scene.place("later").decision.numbers["read_us"] == read_us[0]


def test_a_read_that_others_are_served_before_delays_nobody(stage):
    """Its engine is busy, and so would take two steps: it has to wait there anyway."""
    scene = Scene(stage, us_per_token=20)
    stage.apply(action_id="1", worker_id="b", set_role=ws.SetRole(role=capability_pb2.ROLE_DECODE))
    scene.busy("a", 40_000)
    numbers = scene.place("q").decision.numbers
    assert numbers["pulled_tokens"] == 3_200 and 60_000 < numbers["read_us"] < 70_000


def test_of_several_sources_the_one_that_is_read_from_least(stage):
    scene = Scene(stage, names="abcd")
    scene.keeps("c", CHAT)
    for name in "bc":
        scene.busy(name, 10**7)
    sources = set()
    for number in range(2):
        placed = scene.place(f"q{number}")
        sources.add(scene.run(placed.worker.worker_id).prefix_source.worker.worker_id)
    assert sources == {"b", "c"}


def test_a_source_that_takes_nothing_is_none(stage):
    scene = Scene(stage)
    scene.workers["b"].report(readiness=capability_pb2.READINESS_DRAINING)
    placed = scene.place("q")
    assert placed.worker.worker_id == "a" and not scene.run("a").HasField("prefix_source")


def test_decoders_are_sources_too(stage):
    scene = Scene(stage)
    stage.apply(action_id="1", worker_id="b", set_role=ws.SetRole(role=capability_pb2.ROLE_DECODE))
    placed = scene.place("q")
    assert placed.worker.worker_id == "a"
    assert scene.run("a").prefix_source.worker.worker_id == "b"


def test_whoever_is_chosen_without_looking_at_caches_may_read(make_stage):
    scene = Scene(make_stage(policy=RoundRobin()))
    for number in range(2):
        scene.place(f"q{number}")
    assert scene.run("a").prefix_source.tokens == 3_200 and not scene.run("b").HasField("prefix_source")


def test_what_the_chosen_one_keeps_is_looked_at_exactly(stage):
    """Of those who do not keep most the index tells a half at least: that much must not be read for nothing."""
    scene = Scene(stage)
    scene.keeps("a", CHAT[:2_720])
    scene.busy("b", 10**6)
    placed = scene.place("q")
    assert placed.worker.worker_id == "a" and not scene.run("a").HasField("prefix_source")
    assert placed.decision.numbers["cached_tokens"] == 2_720


def test_a_worker_that_keeps_no_prefixes_does_not_hide_what_the_others_keep(stage):
    none = capability_pb2.EngineCapabilities(**{**CAPABILITIES, "hash_block_tokens": 0})
    stage.worker("a0", capabilities=none)
    scene = Scene(stage)
    scene.router.submit("q", prompt_tokens=3_200, prefix_hashes=hashes(CHAT))
    placed = scene.router.last("placed")
    assert placed.worker.worker_id == "b" and placed.decision.numbers["cached_tokens"] > 0
