"""A request whose prefix a peer keeps, as the worker's core sees it: no engine and no network."""

from __future__ import annotations

import pytest
from pull_rig import HASHES, Reader
from worker_rig import FIRST, SECOND, Update

from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.prefix import HASH_BYTES
from hyperflexis_worker.core import effects, move_event
from hyperflexis_worker.core.prefix_pulls import LIMIT_US

LATER = Attempt(1, 2)


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
        assert reader.rig.core.moves.pulls.tokens == 1

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
