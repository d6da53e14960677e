"""Requests that move with their caches, as the worker's core sees it: both ends, no engine and no network."""

from __future__ import annotations

import pytest
from worker_rig import FIRST, SECOND, Update, ready

from hyperflexis.common.v1 import movement_pb2, slo_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis.worker.v1 import worker_service_pb2 as svc
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.tokens import pack, unpack
from hyperflexis_worker.core import effects, move_event
from hyperflexis_worker.core.arrivals import MOVE_LIMIT_US
from hyperflexis_worker.core.departures import HOLDER_MARGIN_US, LEASE_US

SECOND_ATTEMPT = Attempt(1, 2)
PROMPT = [1, 2, 3]


class Target:
    """A worker to which request `a` comes from `w0`."""

    def __init__(self) -> None:
        self.rig = ready()
        self.rig.core.moves.links.layout = b"layout"

    def attach(self, **run):
        slo = slo_pb2.Slo(tier="chat", ttft_us=SECOND, tpot_us=SECOND)
        values = {"request_id": "a", "attempt": SECOND_ATTEMPT.proto(), "prompt_tokens": 3, "max_tokens": 8, "slo": slo}
        source = movement_pb2.WorkerRef(worker_id="w0", incarnation=7, address="w0:1")
        ticket = movement_pb2.KvTicket(request_id="a", attempt=FIRST.proto(), source=source, num_tokens=3)
        self.rig.command(attach_kv=ws.AttachKv(run=ws.Run(**{**values, **run}), ticket=ticket))
        return self

    def tell(self, event):
        self.rig.take(self.rig.core.move_event(event, self.rig.now_us))

    def one(self, kind):
        found = self.rig.of(kind)
        assert len(found) == 1, self.rig.out
        return found[0]

    def reserved(self, ok=True):
        self.tell(move_event.Reserved("a", SECOND_ATTEMPT, ok))

    def answer(self, *blocks, output=None, engine="e0", lease_us=LEASE_US):
        """The source's answer to the question that is open; with `output`, the last one."""
        asked = self.one(effects.AskExport)
        part = movement_pb2.RankPart(block_ids=pack(blocks))
        response = svc.ExportKvResponse(lease_id=5, lease_us=lease_us, parts=[part], engine=engine, computed_tokens=5)
        if output is not None:
            start = tf.Start(request_id="a", attempt=FIRST.proto(), prompt=pack(PROMPT), max_tokens=8)
            start.committed = pack(output)
            response.start.CopyFrom(start)
        self.tell(move_event.PeerExported(asked.number, response))

    def link(self, layout=b"layout", engine="e0"):
        part = movement_pb2.RankPart(layout_fingerprint=layout, agent_metadata=b"m")
        told = svc.LinkResponse(parts=[part], engine=engine)
        self.tell(move_event.PeerLinked(self.one(effects.AskLink).number, told))

    def linked(self, transport="nixl"):
        self.tell(
            move_event.Linked("e0", movement_pb2.LinkStatus(transport=transport, error="" if transport else "no"))
        )

    def pulled(self, error=""):
        self.tell(move_event.Pulled(self.one(effects.PullBlocks).number, error))

    def failed(self):
        """The reason told, where the move came to nothing, and nothing of it is left."""
        updates = [u for report in self.rig.reports() for u in report.updates if u.kind == Update.KIND_NOT_ATTACHED]
        assert len(updates) == 1, self.rig.out
        assert not self.rig.core.requests.unfinished and not len(self.rig.core.moves.arrivals)
        return updates[0].decision.reason

    def up_to_the_last_read(self):
        self.attach().reserved()
        self.answer(4)
        self.link()
        self.linked()
        self.pulled()
        self.answer(6, output=[10, 11, 12])
        return self


@pytest.fixture
def target():
    return Target()


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
        assert (pull.engine, pull.first_block, list(pull.blocks)) == ("e0", 0, [4, 9, 2])
        target.pulled()
        assert not target.one(effects.AskExport).request.final, "three blocks: as many may have come meanwhile"
        target.answer(6)
        target.pulled()
        ask = target.one(effects.AskExport).request
        assert (ask.final, ask.from_block, ask.lease_id) == (True, 4, 5)
        target.answer(7, output=[10, 11, 12])
        assert target.one(effects.PullBlocks).first_block == 4
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


class Source:
    """A worker where request `a` decodes."""

    def __init__(self) -> None:
        self.rig = ready()
        self.rig.core.moves.links.layout = b"layout"
        self.rig.run()
        self.rig.start()
        self.rig.step(("a", FIRST, 0, 10), ("a", FIRST, 1, 11))
        self.rig.pass_time(100_000)

    def ask(self, final=False, number=1, attempt=FIRST, from_block=0):
        ask = svc.ExportKvRequest(
            request_id="a",
            attempt=attempt.proto(),
            target_attempt=SECOND_ATTEMPT.proto(),
            from_block=from_block,
            final=final,
        )
        self.rig.take(self.rig.core.move_event(move_event.ExportAsked(number, ask), self.rig.now_us))

    def exported(self, number=1, output=b"", **fields):
        values = {"lease_id": 5, "blocks": (3, 4), "generations": (1, 1), "computed": 4, **fields}
        event = move_event.Exported(number, "e0", output=output, **values)
        self.rig.take(self.rig.core.move_event(event, self.rig.now_us))

    def answer(self):
        (answer,) = self.rig.of(effects.AnswerExport)
        return answer


@pytest.fixture
def source():
    return Source()


class TestDeparture:
    def test_blocks_are_leased_while_it_goes_on(self, source):
        source.ask()
        (export,) = source.rig.of(effects.ExportCache)
        assert (export.request_id, export.final, export.lease_us) == ("a", False, LEASE_US + HOLDER_MARGIN_US)
        source.exported()
        response = source.answer().response
        assert unpack(response.parts[0].block_ids) == [3, 4] and response.lease_us == LEASE_US
        assert not response.HasField("start")
        source.rig.step(("a", FIRST, 2, 12))
        assert source.rig.entries()

    def test_stopped_it_gives_its_target_everything_and_is_lost_to_nobody(self, source):
        source.ask(final=True)
        source.exported(output=pack([10, 11]))
        start = source.answer().response.start
        assert unpack(start.committed) == [10, 11] and unpack(start.prompt) == PROMPT
        assert source.rig.told() == [("a", Update.KIND_KV_READY)]
        source.rig.feed(subscribe=tf.Subscribe(request_id="a", attempt=FIRST.proto(), next_index=0))
        assert [entry[:2] for entry in source.rig.entries()] == [(0, [10, 11])]
        source.rig.command(cancel=ws.Cancel(request_id="a", attempt=FIRST.proto(), reason="moved"))
        assert [lease.lease_id for lease in source.rig.of(effects.EndLease)] == [5]
        assert not source.rig.of(effects.DropSequence), "the engine has let go of it"
        assert not source.rig.core.requests.unfinished

    def test_stopped_and_never_fetched_it_is_lost_in_the_end(self, source):
        source.ask(final=True)
        source.exported(output=pack([10, 11]))
        for _ in range(LEASE_US // SECOND):
            source.rig.pass_time(SECOND)
        assert source.rig.core.requests.unfinished == 1
        source.rig.pass_time(HOLDER_MARGIN_US)
        assert ("a", Update.KIND_LOST) in source.rig.told()
        assert not source.rig.core.requests.unfinished

    def test_another_attempt_than_runs_here(self, source):
        source.ask(attempt=SECOND_ATTEMPT)
        answer = source.answer()
        assert answer.response is None and "does not run here" in answer.error

    def test_too_much_leased_already(self, source):
        source.ask()
        source.exported(error="too much", full=True)
        assert source.answer().full

    def test_it_ends_while_it_is_read(self, source):
        source.ask()
        source.exported()
        source.rig.feed(closed=tf.Closed(request_ids=["a"]))
        assert [lease.lease_id for lease in source.rig.of(effects.EndLease)] == [5]

    @pytest.mark.parametrize("final", [True, False])
    def test_it_ended_while_the_engine_was_asked(self, source, final):
        """The engine may have made more tokens meanwhile, of which nobody was told."""
        source.ask(final=final)
        source.rig.command(cancel=ws.Cancel(request_id="a", attempt=FIRST.proto()))
        source.exported(output=pack([10, 11, 12]) if final else b"")
        assert source.answer().response is None
        assert [lease.lease_id for lease in source.rig.of(effects.EndLease)] == [5]
        assert not source.rig.core.requests.unfinished

    def test_the_engine_dies_with_what_is_leased(self, source):
        source.ask(number=2)
        source.ask(final=True)
        source.exported(output=pack([10, 11]))
        source.rig.lose_engine()
        assert source.answer().response is None
        assert ("a", Update.KIND_LOST) in [*source.rig.told(), *source.rig.updates()]

    def test_an_engine_that_stops_it_with_tokens_it_did_not_tell_is_broken(self, source):
        source.ask(final=True)
        with pytest.raises(AssertionError, match="tokens that it did not tell"):
            source.exported(output=pack([10, 11, 12]))


class TestLinks:
    def test_made_when_told_and_reported(self, target):
        peer = movement_pb2.WorkerRef(worker_id="w0", incarnation=7, address="w0:1")
        target.rig.command(link=ws.LinkPeer(peer=peer))
        target.link()
        target.linked()
        target.rig.pass_time(SECOND)
        (link,) = target.rig.reports()[-1].links
        assert (link.peer.worker_id, link.transport) == ("w0", "nixl")
        target.rig.command(link=ws.LinkPeer(peer=peer, unlink=True))
        target.rig.pass_time(SECOND)
        assert not target.rig.reports()[-1].links

    def test_one_that_cannot_be_made_is_reported_too(self, target):
        target.rig.command(link=ws.LinkPeer(peer=movement_pb2.WorkerRef(worker_id="w0", address="w0:1")))
        target.tell(move_event.PeerLinked(target.one(effects.AskLink).number, None, "source_unavailable"))
        target.rig.pass_time(SECOND)
        (link,) = target.rig.reports()[-1].links
        assert (link.transport, link.error) == ("", "source_unavailable")
