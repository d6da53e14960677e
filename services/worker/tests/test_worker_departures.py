"""A request that leaves with its cache, as the worker's core sees it: no engine and no network."""

from __future__ import annotations

import pytest
from worker_rig import FIRST, SECOND, Update, ready

from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis.worker.v1 import worker_service_pb2 as svc
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.tokens import pack, unpack
from hyperflexis_worker.core import effects, move_event
from hyperflexis_worker.core.departures import HOLDER_MARGIN_US, LEASE_US

SECOND_ATTEMPT = Attempt(1, 2)


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
        assert unpack(start.committed) == [10, 11] and unpack(start.prompt) == [1, 2, 3]
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
