"""A request that comes with its cache, as the worker's core sees it: no engine and no network."""

from __future__ import annotations

import pytest
from arrival_rig import SECOND_ATTEMPT
from worker_rig import Update

from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core import effects, move_event
from hyperflexis_worker.core.arrivals import MOVE_LIMIT_US
from hyperflexis_worker.core.departures import LEASE_US


class TestArrival:
    def test_it_reads_while_it_runs_there_then_stops_it_and_goes_on(self, target):
        target.attach()
        assert target.one(effects.ReserveBlocks).tokens > 3
        target.reserved()
        ask = target.one(effects.AskExport)
        assert (ask.address, ask.request.from_block, ask.request.final) == ("w0:1", 0, False)
        target.answer(4, 9, 2)
        target.link()
        assert target.one(effects.LinkEngine).metadata == b"m"
        target.linked()
        pull = target.one(effects.PullBlocks)
        assert (pull.engine, pull.first_block, list(pull.blocks), pull.last) == ("e0", 0, [4, 9, 2], False)
        target.pulled()
        assert not target.one(effects.AskExport).request.final, "three blocks: as many may have come meanwhile"
        target.answer(6)
        target.pulled()
        ask = target.one(effects.AskExport).request
        assert (ask.final, ask.from_block, ask.lease_id) == (True, 4, 5)
        target.answer(7, output=[10, 11, 12])
        pull = target.one(effects.PullBlocks)
        assert (pull.first_block, pull.last) == (4, True), "nothing comes before it: the request stands still"
        target.pulled()
        release = target.one(effects.AskRelease)
        target.tell(move_event.PeerReleased(release.number, True))
        attach = target.one(effects.AttachSequence)
        assert (attach.computed, attach.sequence.output, attach.sequence.attempt) == (5, [10, 11, 12], SECOND_ATTEMPT)
        assert target.rig.told() == [("a", Update.KIND_ATTACHED)]

    def test_its_router_subscribes_and_gets_what_it_lacks_and_what_comes(self, target):
        target.up_to_the_last_read().pulled()
        target.tell(move_event.PeerReleased(target.one(effects.AskRelease).number, True))
        rig = target.rig
        rig.feed(subscribe=tf.Subscribe(request_id="a", attempt=SECOND_ATTEMPT.proto(), next_index=2))
        assert [entry[:2] for entry in rig.entries()] == [(2, [12])]
        rig.step(("a", SECOND_ATTEMPT, 3, 13))
        assert [entry[:2] for entry in rig.entries()] == [(3, [13])]

    def test_a_link_that_is_there_is_used_again(self, target):
        target.up_to_the_last_read().pulled()
        target.tell(move_event.PeerReleased(target.one(effects.AskRelease).number, True))
        target.attach(request_id="b")
        target.tell(move_event.Reserved("b", SECOND_ATTEMPT, True))
        target.answer(4)
        assert not target.rig.of(effects.AskLink) and target.one(effects.PullBlocks).blocks == [4]

    def test_more_blocks_than_were_reserved_are_reserved_first(self, target):
        target.attach().reserved()
        target.answer(*range(1, 30))
        target.link()
        target.linked()
        assert target.one(effects.ReserveBlocks).tokens >= 29 * 4
        target.reserved()
        assert len(target.one(effects.PullBlocks).blocks) == 29


class TestArrivalFails:
    @pytest.mark.parametrize("engine_up", [True, False])
    def test_no_engine_or_caches_that_do_not_move(self, target, engine_up):
        if engine_up:
            target.rig.core.moves.links.layout = b""
        else:
            target.rig.lose_engine()
        target.attach()
        assert target.failed() == ("caches_do_not_move" if engine_up else "no_engine")

    def test_while_it_drains(self, target):
        target.rig.command(drain=ws.Drain())
        target.attach()
        assert target.failed() == "draining"

    def test_no_blocks(self, target):
        target.attach().reserved(ok=False)
        assert target.failed() == "no_blocks"

    def test_its_source_refuses(self, target):
        target.attach().reserved()
        target.tell(move_event.PeerExported(target.one(effects.AskExport).number, None, "source_not_found"))
        assert target.one(effects.UnreserveBlocks)
        assert target.failed() == "source_not_found"

    @pytest.mark.parametrize(
        ("layout", "engine", "reason"), [(b"other", "e0", "layout_differs"), (b"layout", "e1", "source_engine_changed")]
    )
    def test_a_peer_that_cannot_be_read(self, target, layout, engine, reason):
        target.attach().reserved()
        target.answer(4)
        target.link(layout, engine)
        assert target.one(effects.AskRelease).lease_id == 5
        assert target.failed() == reason

    def test_no_link(self, target):
        target.attach().reserved()
        target.answer(4)
        target.link()
        target.linked(transport="")
        assert target.failed() == "no"

    def test_a_read_that_fails_and_the_link_is_made_anew_next_time(self, target):
        target.up_to_the_last_read().pulled("broken")
        assert target.failed() == "read_failed"
        target.attach(request_id="b", attempt=Attempt(1, 9).proto())
        target.tell(move_event.Reserved("b", Attempt(1, 9), True))
        target.answer(4)
        assert target.one(effects.AskLink)

    def test_what_was_read_after_the_lease_counts_for_nothing(self, target):
        target.up_to_the_last_read()
        target.rig.now_us += LEASE_US
        target.pulled()
        assert target.failed() == "lease_over"

    def test_a_lease_that_was_over_at_its_source(self, target):
        target.up_to_the_last_read().pulled()
        target.tell(move_event.PeerReleased(target.one(effects.AskRelease).number, False))
        assert target.failed() == "lease_over"

    def test_the_engine_dies(self, target):
        target.up_to_the_last_read()
        target.rig.lose_engine()
        assert target.failed() == "engine_lost"

    def test_it_takes_too_long(self, target):
        target.attach().reserved()
        target.rig.pass_time(MOVE_LIMIT_US + 1)
        assert target.failed() == "timeout_asking"

    def test_cancelled_nobody_hears_of_it_and_all_is_let_go(self, target):
        target.up_to_the_last_read()
        target.rig.command(cancel=ws.Cancel(request_id="a", attempt=SECOND_ATTEMPT.proto()))
        assert target.one(effects.UnreserveBlocks) and target.one(effects.AskRelease).lease_id == 5
        assert not len(target.rig.core.moves.arrivals)
        target.attach()
        assert target.failed() == "ended_here_earlier"

    def test_answers_that_come_after_its_end_change_nothing(self, target):
        target.up_to_the_last_read()
        number = target.one(effects.PullBlocks).number
        target.rig.command(cancel=ws.Cancel(request_id="a", attempt=SECOND_ATTEMPT.proto()))
        target.tell(move_event.Pulled(number))
        target.tell(move_event.Reserved("a", SECOND_ATTEMPT, True))
        assert not target.rig.of(effects.AskRelease) and not target.rig.of(effects.AskExport)
