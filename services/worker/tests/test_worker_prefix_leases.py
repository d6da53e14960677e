"""Prefixes that others read here, as the worker's core sees it: no engine and no network."""

from __future__ import annotations

from typing import Any

import pytest
from pull_rig import HASHES, Reader

from hyperflexis.worker.v1 import worker_service_pb2 as svc
from hyperflexis_common.tokens import unpack
from hyperflexis_worker.core import effects, move_event
from hyperflexis_worker.core.departures import HOLDER_MARGIN_US
from hyperflexis_worker.core.prefix_leases import LEASE_US


@pytest.fixture
def reader():
    return Reader()


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
