"""A request whose prefix a peer keeps, as the worker's core sees it: no engine and no network."""

from __future__ import annotations

from typing import Any

import pytest
from arrival_rig import Kind
from worker_rig import FIRST, SECOND, Update, ready

from hyperflexis.common.v1 import movement_pb2, slo_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import worker_service_pb2 as svc
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.prefix import HASH_BYTES, prefix_hashes
from hyperflexis_common.tokens import pack, unpack
from hyperflexis_worker.core import effects, move_event
from hyperflexis_worker.core.departures import HOLDER_MARGIN_US
from hyperflexis_worker.core.prefix_leases import LEASE_US
from hyperflexis_worker.core.prefix_pulls import LIMIT_US

PROMPT = pack(range(1, 22))
HASHES = prefix_hashes(PROMPT, 4)
LATER = Attempt(1, 2)


class Reader:
    """Worker `w`, to be given request `a`, of whose 21 tokens `w0` keeps some."""

    def __init__(self) -> None:
        self.rig = ready()
        self.asked = 0
        """Number of the question to the source."""
        self.rig.core.moves.links.layout = b"layout"

    def grant(self, tokens: int = 20, attempt: Attempt = FIRST, ttft_us: int = SECOND) -> Reader:
        peer = movement_pb2.WorkerRef(worker_id="w0", incarnation=7, address="w0:1")
        slo = slo_pb2.Slo(tier="chat", ttft_us=ttft_us, tpot_us=SECOND)
        source = ws.PrefixSource(worker=peer, tokens=tokens)
        run = ws.Run(request_id="a", attempt=attempt.proto(), prompt_tokens=21, max_tokens=8, slo=slo)
        run.prefix_source.CopyFrom(source)
        self.rig.command(run=run)
        self.rig.start(attempt=attempt, prompt=PROMPT)
        self.asked = next((ask.number for ask in self.rig.out if isinstance(ask, effects.AskPrefix)), 0)
        return self

    def tell(self, event: move_event.MoveEvent) -> None:
        self.rig.take(self.rig.core.move_event(event, self.rig.now_us))

    def one(self, kind: type[Kind]) -> Kind:
        found = [effect for effect in self.rig.out if isinstance(effect, kind)]
        assert len(found) == 1, self.rig.out
        return found[0]

    def none(self, kind: type) -> bool:
        return not self.rig.of(kind)

    def reserved(self, cached: int = 0, ok: bool = True) -> None:
        self.tell(move_event.Reserved("a", FIRST, ok, cached))

    def answer(self, *blocks: int) -> None:
        part = movement_pb2.RankPart(block_ids=pack(blocks))
        response = svc.ExportPrefixResponse(lease_id=5, lease_us=LEASE_US, parts=[part], engine="e0")
        self.tell(move_event.PeerPrefix(self.asked, response))

    def linked(self) -> None:
        part = movement_pb2.RankPart(layout_fingerprint=b"layout", agent_metadata=b"m")
        told = svc.LinkResponse(parts=[part], engine="e0")
        self.tell(move_event.PeerLinked(self.one(effects.AskLink).number, told))
        self.tell(move_event.Linked("e0", movement_pb2.LinkStatus(transport="nixl")))

    def pulled(self, error: str = "") -> None:
        self.tell(move_event.Pulled(self.one(effects.PullBlocks).number, error))

    def released(self, held: bool = True) -> None:
        self.tell(move_event.PeerReleased(self.one(effects.AskRelease).number, held))

    def up_to(self, step: str) -> Reader:
        self.grant()
        for name, go in (
            ("reserving", self.reserved),
            ("asking", lambda: self.answer(4, 9, 2, 3, 6)),
            ("linking", self.linked),
            ("reading", self.pulled),
            ("releasing", self.released),
        ):
            if name == step:
                return self
            go()
        return self

    def computed(self, outcome: str = "") -> None:
        """It went to the engine, and nothing of the pull is left."""
        assert self.one(effects.AddSequence).sequence.attempt == FIRST
        self.nothing_left()
        if outcome:
            assert dict(self.rig.core.moves.pulls.outcomes) == {outcome: 1}

    def nothing_left(self) -> None:
        pulls = self.rig.core.moves.pulls
        assert not len(pulls) and not pulls._by_number and not pulls.tokens


STEPS = ("reserving", "asking", "linking", "reading", "releasing")
LEASED = STEPS[2:]


@pytest.fixture
def reader():
    return Reader()


class TestPull:
    @pytest.mark.parametrize("first", ["engine", "source"])
    def test_it_reads_what_is_not_here_and_goes_to_the_engine_after_that(self, reader, first):
        reader.grant()
        assert reader.one(effects.ReservePrefix).hashes == HASHES and reader.none(effects.AddSequence)
        ask = reader.one(effects.AskPrefix)
        assert (ask.address, ask.request.incarnation, ask.request.hashes) == ("w0:1", 7, HASHES)
        if first == "engine":
            reader.reserved(cached=2)
        reader.answer(4, 9, 2, 3)
        if first == "source":
            assert reader.none(effects.AskLink), "what is here is not known yet"
            reader.reserved(cached=2)
        reader.linked()
        pull = reader.one(effects.PullBlocks)
        assert (pull.engine, pull.lease_id, pull.first_block, list(pull.blocks)) == ("e0", 5, 2, [2, 3])
        assert pull.within_us <= LIMIT_US
        reader.rig.now_us += 3_000
        reader.pulled()
        assert reader.one(effects.AskRelease).lease_id == 5 and reader.none(effects.AddSequence)
        reader.released()
        assert reader.one(effects.KeepPrefix).hashes == HASHES[: 4 * HASH_BYTES]
        assert reader.none(effects.UnreserveBlocks)
        kinds = [type(effect) for effect in reader.rig.out]
        assert kinds.index(effects.KeepPrefix) < kinds.index(effects.AddSequence)
        reader.computed("read")

    def test_what_came_of_it_is_told_at_the_end(self, reader):
        reader.up_to("releasing")
        reader.rig.now_us += 3_000
        reader.released()
        reader.rig.step(("a", FIRST, 0, 10), ended=("a", FIRST))
        reader.rig.pass_time(100_000)
        (told,) = [u for r in reader.rig.reports() for u in r.updates if u.kind == Update.KIND_FINISHED]
        assert (told.decision.numbers["pulled_tokens"], told.decision.numbers["pull_us"]) == (20, 3_000)

    def test_meanwhile_it_waits_and_its_tokens_are_work_to_come(self, reader):
        reader.grant(tokens=16)
        status = reader.rig.core.requests.statuses()[0]
        assert status.phase == ws.REQUEST_PHASE_WAITING
        reader.rig.pass_time(SECOND // 10)
        (load,) = [report.load for report in reader.rig.reports()]
        assert (load.queued_prefill_tokens, load.waiting) == (5, 0), "nothing of it is in the engine"

    def test_the_last_token_is_computed_whatever_is_kept(self, reader):
        run = reader.grant(tokens=400)
        assert len(run.one(effects.ReservePrefix).hashes) == 5 * HASH_BYTES

    @pytest.mark.parametrize("case", ["none", "less than a block", "late", "cannot", "no cache"])
    def test_without_a_reason_to_wait_it_does_not(self, reader, case):
        if case == "cannot":
            reader.rig.core.moves.links.layout = b""
        if case == "no cache":
            reader.rig.core.moves.pulls._block_tokens = 0
        if case == "none":
            reader.rig.run()
            reader.rig.start()
        else:
            reader.grant(tokens=3 if case == "less than a block" else 20, ttft_us=0 if case == "late" else SECOND)
        assert reader.none(effects.ReservePrefix)
        reader.computed()


class TestWhatFails:
    def test_no_blocks(self, reader):
        reader.grant().reserved(ok=False)
        reader.computed("no_blocks")

    def test_all_of_it_is_here(self, reader):
        reader.grant().reserved(cached=5)
        reader.computed("here_already")
        reader.answer(4, 9, 2)
        assert reader.one(effects.AskRelease).lease_id == 5, "it is not kept waiting for its end"

    @pytest.mark.parametrize("why", ["source_not_found", "source_unimplemented", "source_unavailable"])
    def test_the_source_says_no(self, reader, why):
        reader.up_to("asking")
        reader.tell(move_event.PeerPrefix(reader.asked, None, why))
        assert reader.one(effects.UnreserveBlocks).attempt == FIRST
        reader.computed(why)

    def test_no_more_is_there_than_here(self, reader):
        reader.grant().reserved(cached=3)
        reader.answer(4, 9, 2)
        assert reader.one(effects.AskRelease).lease_id == 5
        reader.computed("no_more_there")

    def test_no_link(self, reader):
        reader.up_to("linking")
        reader.tell(move_event.PeerLinked(reader.one(effects.AskLink).number, None, "source_unavailable"))
        assert reader.one(effects.AskRelease).lease_id == 5
        reader.computed("source_unavailable")

    def test_a_read_that_fails_and_the_link_with_it(self, reader):
        reader.up_to("reading").pulled("the transfer failed")
        assert reader.one(effects.UnreserveBlocks) and reader.one(effects.AskRelease).number == 0
        assert reader.rig.core.moves.links.statuses() == []
        reader.computed("read_failed")

    def test_a_lease_that_was_over(self, reader):
        reader.up_to("releasing").released(held=False)
        assert reader.none(effects.KeepPrefix) and reader.one(effects.UnreserveBlocks)
        assert reader.none(effects.AskRelease), "it is over"
        reader.computed("lease_over")

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize(("ttft_us", "limit_us"), [(4 * SECOND, LIMIT_US), (SECOND // 5, SECOND // 20)])
    def test_too_slow(self, reader, step, ttft_us, limit_us):
        reader.grant = lambda grant=reader.grant: grant(ttft_us=ttft_us)
        reader.up_to(step)
        reader.rig.pass_time(limit_us - 1)
        assert reader.none(effects.AddSequence)
        reader.rig.pass_time(1)
        assert reader.one(effects.UnreserveBlocks)
        assert len(reader.rig.of(effects.AskRelease)) == (step in LEASED)
        reader.computed(f"timeout_{'asking' if step == 'reserving' else step}")

    def test_an_answer_that_comes_later_changes_nothing(self, reader):
        reader.up_to("reading")
        number = reader.one(effects.PullBlocks).number
        reader.rig.pass_time(LIMIT_US)
        reader.tell(move_event.Pulled(number))
        reader.tell(move_event.PeerReleased(number, True))
        reader.reserved()
        assert not reader.rig.of(effects.KeepPrefix) + reader.rig.of(effects.AddSequence)


@pytest.mark.parametrize("step", STEPS)
class TestWhoeverWantsItNoMore:
    def ended(self, reader, step):
        assert reader.one(effects.UnreserveBlocks).attempt == FIRST
        assert len(reader.rig.of(effects.AskRelease)) == (step in LEASED)
        assert reader.none(effects.AddSequence)
        reader.nothing_left()
        reader.rig.pass_time(LIMIT_US)
        assert reader.none(effects.AddSequence)

    def test_cancel(self, reader, step):
        reader.up_to(step).rig.command(cancel=ws.Cancel(request_id="a", attempt=FIRST.proto()))
        self.ended(reader, step)

    def test_revoke_is_answered_at_once(self, reader, step):
        reader.up_to(step).rig.command(revoke=ws.Revoke(request_id="a", attempt=FIRST.proto()))
        assert reader.none(effects.RevokeSequence)
        self.ended(reader, step)
        assert not reader.rig.core.requests.unfinished

    def test_a_later_attempt(self, reader, step):
        reader.up_to(step).rig.run(attempt=LATER)
        self.ended(reader, step)

    def test_the_engine_ends(self, reader, step):
        reader.up_to(step).rig.lose_engine()
        self.ended(reader, step)
        assert not reader.rig.core.requests.unfinished


class TestSource:
    def ask(self, reader: Reader, incarnation: int = 1) -> None:
        ask: Any = svc.ExportPrefixRequest(incarnation=incarnation, hashes=HASHES)
        reader.tell(move_event.PrefixAsked(3, ask))

    def test_it_leases_what_is_there(self, reader):
        self.ask(reader)
        export = reader.one(effects.ExportPrefix)
        assert (export.number, export.hashes, export.lease_us) == (3, HASHES, LEASE_US + HOLDER_MARGIN_US)
        reader.tell(move_event.Exported(3, "e1", 8, (4, 2), (1, 1)))
        response = reader.one(effects.AnswerExport).response
        assert (response.lease_id, response.lease_us, response.engine) == (8, LEASE_US, "e1")
        assert unpack(response.parts[0].block_ids) == [4, 2]
        reader.tell(move_event.Exported(3, "e1", 8, (4, 2), (1, 1)))
        assert reader.none(effects.AnswerExport), "once"

    def test_it_knows_itself_that_it_was_held(self, reader):
        self.ask(reader)
        reader.rig.now_us += 10_000
        reader.tell(move_event.Exported(3, "e1", 8, (4, 2), (1, 1)))
        reader.rig.now_us += LEASE_US
        reader.tell(move_event.ReleaseAsked(4, 8))
        assert reader.one(effects.AnswerRelease) == effects.AnswerRelease(4, held=True)
        assert reader.one(effects.EndLease) == effects.EndLease(8)
        reader.tell(move_event.ReleaseAsked(5, 8))
        assert reader.one(effects.EndLease) == effects.EndLease(8, 5), "the engine says of anything else"

    @pytest.mark.parametrize("over", ["time", "engine"])
    def test_of_one_that_may_be_over_the_engine_says_whether_it_is(self, reader, over):
        self.ask(reader)
        reader.rig.now_us += 10_000
        reader.tell(move_event.Exported(3, "e1", 8, (4, 2), (1, 1)))
        if over == "engine":
            reader.rig.lose_engine()
        else:
            reader.rig.now_us += LEASE_US + HOLDER_MARGIN_US - 10_000
        reader.tell(move_event.ReleaseAsked(4, 8))
        assert reader.one(effects.EndLease).number == 4 and reader.none(effects.AnswerRelease)
        reader.rig.pass_time(0)
        assert not reader.rig.core.moves.prefixes._until_us

    def test_another_life_of_it_is_not_meant(self, reader):
        self.ask(reader, incarnation=2)
        assert reader.one(effects.AnswerExport).error and reader.none(effects.ExportPrefix)

    def test_nothing_is_there_or_too_much_is_pinned(self, reader):
        self.ask(reader)
        reader.tell(move_event.Exported(3, "e1", error="no", full=True))
        answer = reader.one(effects.AnswerExport)
        assert (answer.response, answer.error, answer.full) == (None, "no", True)

    def test_its_engine_ends_or_has_ended(self, reader):
        self.ask(reader)
        reader.rig.lose_engine()
        assert reader.one(effects.AnswerExport).error
        self.ask(reader)
        assert reader.one(effects.AnswerExport).error and reader.none(effects.ExportPrefix)
