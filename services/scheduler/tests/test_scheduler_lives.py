"""Which life of a worker id may stay, which fingerprint of a model: also after silence and changes of the leader."""

from __future__ import annotations

import pytest

from hyperflexis.common.v1 import identity_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as ss
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_scheduler.core.actions import Outcome
from hyperflexis_scheduler.core.lives import RETIRED_PER_ID, Lives
from hyperflexis_scheduler.core.memory import WorkerRecord
from hyperflexis_scheduler.core.rules import Rules

SECOND = 1_000_000
ONE, TWO = WorkerKey("w1", 1), WorkerKey("w1", 2)


def record(key: WorkerKey = ONE, fingerprint: bytes = b"f", **fields) -> WorkerRecord:
    return WorkerRecord(key, "a:1", "m", fingerprint, **fields)


def next_leader(stage, memory) -> None:
    epoch = stage.core.cell.fence.epoch + 1
    stage.act(stage.core.begin, identity_pb2.Fence(epoch=epoch, leader_id="me"), memory)


class TestStoppedAndReplaced:
    def silence(self, stage, worker):
        """Its process is stopped until its session and its grace are over."""
        stage.tick(4_000)
        assert worker.closed and not stage.core.cell.fleet.by_id

    def check(self, stage, new):
        ghost = stage.worker(incarnation=1, snapshot=False)
        assert ghost.last("rejected").reason == ws.Rejected.REASON_INCARNATION and ghost.last("rejected").permanent
        assert new.closed is None and stage.core.cell.fleet.by_id["w1"].key == TWO

    def test_the_replacement_stays_though_the_older_life_was_given_up_long_before(self, stage):
        self.silence(stage, stage.worker(incarnation=1))
        new = stage.worker(incarnation=2)
        self.check(stage, new)

    def test_it_may_come_back_where_nobody_took_its_place(self, stage):
        self.silence(stage, stage.worker(incarnation=1))
        assert stage.worker(incarnation=1).all("registered")

    def test_a_new_life_and_a_retirement_are_written_down_at_once(self, stage):
        self.silence(stage, stage.worker(incarnation=1))
        assert stage.remembered == 1
        stage.worker(incarnation=2)
        assert stage.remembered == 2 and stage.core.memory().workers[0].retired == (1,)
        stage.worker(incarnation=2)
        assert stage.remembered == 2

    def test_what_the_leader_before_wrote_down_is_no_news(self, make_stage):
        stage = make_stage(known=[record()])
        stage.worker(incarnation=1)
        assert not stage.remembered

    def test_the_next_leader_knows_it(self, stage):
        self.silence(stage, stage.worker(incarnation=1))
        stage.worker(incarnation=2)
        next_leader(stage, stage.core.memory())
        self.check(stage, stage.worker(incarnation=2))

    def test_the_leader_may_change_in_between(self, stage):
        stage.worker(incarnation=1)
        next_leader(stage, stage.core.memory())
        self.check(stage, stage.worker(incarnation=2))

    def test_a_life_that_no_leader_has_had_for_long_is_known_from_the_records(self, make_stage):
        stage = make_stage(known=[record(age_us=3_000 * SECOND)])
        assert not stage.core.cell.fleet.awaited
        self.check(stage, stage.worker(incarnation=2))

    def test_records_that_come_late_retire_it(self, make_stage):
        stage = make_stage(known=None)
        new = stage.worker(incarnation=2)
        stage.act(stage.core.learn, stage.memory([record(age_us=3_000 * SECOND)]))
        self.check(stage, new)


class TestLives:
    def test_ids_that_nobody_has_are_forgotten_by_age_and_by_number(self):
        lives = Lives(limit=2, keep_us=100)
        for number in range(4):
            lives.joined(WorkerKey(f"w{number}", 1))
            lives.joined(WorkerKey(f"w{number}", 2))
        for number in range(4):
            lives.left(f"w{number}", number)
        assert len(lives) == 2 and lives.is_retired(WorkerKey("w3", 1)) and not lives.is_retired(WorkerKey("w0", 1))
        lives.expire(102)
        assert len(lives) == 1
        lives.joined(WorkerKey("w3", 2))
        lives.expire(1_000)
        assert lives.is_retired(WorkerKey("w3", 1))

    def test_incarnations_of_one_id_are_bounded(self):
        lives = Lives(limit=2, keep_us=100)
        for incarnation in range(1, RETIRED_PER_ID + 10):
            lives.joined(WorkerKey("w", incarnation))
        assert len(lives.retired("w")) == RETIRED_PER_ID and lives.is_retired(WorkerKey("w", RETIRED_PER_ID + 8))

    def test_the_replacement_is_not_retired_where_the_older_life_was_back_first(self):
        lives = Lives(limit=2, keep_us=100)
        lives.joined(ONE)
        lives.learn(record(TWO, retired=(1,)), 0)
        assert not lives.is_retired(ONE) and not lives.is_retired(TWO)
        assert lives.joined(TWO) and lives.is_retired(ONE)

    def test_a_recorded_life_has_been_away_for_its_age(self):
        lives = Lives(limit=2, keep_us=100)
        lives.learn(record(age_us=60), 1_000)
        lives.expire(1_039)
        assert len(lives) == 1
        lives.expire(1_040)
        assert len(lives) == 0


class TestFingerprints:
    def register(self, stage, worker_id, fingerprint, snapshot=False):
        return stage.worker(worker_id, snapshot=snapshot, fingerprint=fingerprint)

    def refused(self, peer):
        rejected = peer.last("rejected")
        assert rejected.reason == ws.Rejected.REASON_FINGERPRINT
        return "for good" if rejected.permanent else "for now"

    def test_a_wrong_one_that_comes_first_after_a_change_of_the_leader_drives_nobody_out(self, make_stage):
        stage = make_stage(known=[record(WorkerKey(f"w{number}", 1)) for number in range(3)])
        assert self.refused(self.register(stage, "bad", b"x")) == "for now"
        good = [self.register(stage, f"w{number}", b"f") for number in range(3)]
        assert all(peer.all("registered") for peer in good)
        assert self.refused(self.register(stage, "bad", b"x")) == "for good"

    def test_without_the_records_nobody_is_turned_away_for_good(self, make_stage):
        stage = make_stage(known=None)
        bad = self.register(stage, "bad", b"x", snapshot=True)
        stage.tick(60_000, bad)
        assert self.refused(self.register(stage, "w1", b"f")) == "for now"

    def test_records_that_come_late_turn_the_wrong_one_away(self, make_stage):
        stage = make_stage(known=None)
        router = stage.router()
        bad = self.register(stage, "bad", b"x", snapshot=True)
        router.submit("q")
        stage.act(stage.core.learn, stage.memory([record()]))
        assert self.refused(bad) == "for now" and bad.closed
        assert router.last("lost").decision.reason == "fingerprint"
        assert self.register(stage, "w1", b"f").all("registered")
        assert self.refused(self.register(stage, "bad", b"x")) == "for good"

    def test_a_young_leader_that_knows_of_no_workers_turns_nobody_away_for_good(self, stage):
        first = stage.worker("w1")
        assert self.refused(self.register(stage, "w2", b"x")) == "for now"
        stage.tick(10_000, first)
        assert self.refused(self.register(stage, "w2", b"x")) == "for good"

    def test_new_weights_come_in_where_none_of_the_old_workers_is_left(self, make_stage):
        stage = make_stage(known=[record()])
        assert self.refused(self.register(stage, "w2", b"new")) == "for now"
        stage.tick(10_000)
        assert self.register(stage, "w2", b"new").all("registered")

    def test_workers_gone_for_long_say_nothing(self, make_stage):
        stage = make_stage(known=[record(age_us=11 * SECOND)])
        assert self.register(stage, "w2", b"new").all("registered")


class TestScalers:
    def drain(self, stage, action_id, epoch):
        fence = identity_pb2.Fence(epoch=epoch)
        return stage.apply(action_id=action_id, worker_id="w1", drain=ws.Drain(), scaler_fence=fence).outcome

    def test_a_scaler_that_was_replaced_is_refused_by_the_next_leader_too(self, stage):
        stage.worker()
        stage.remembered = 0
        assert self.drain(stage, "1", 3) is Outcome.APPLIED and stage.remembered == 1
        next_leader(stage, stage.core.memory())
        stage.worker()
        assert self.drain(stage, "2", 2) is Outcome.STALE_FENCE
        assert self.drain(stage, "3", 3) is Outcome.APPLIED

    def test_also_where_the_next_leader_learns_it_late(self, stage):
        next_leader(stage, None)
        stage.worker()
        stage.act(stage.core.learn, stage.memory([], scaler_epoch=3))
        assert self.drain(stage, "2", 2) is Outcome.STALE_FENCE


def test_a_young_leader_that_learns_late_settles_when_the_known_workers_are_here(make_stage):
    stage = make_stage(Rules(), known=None)
    first, router = stage.worker("w1"), stage.router()
    router.submit("q", resume=True)
    stage.act(stage.core.learn, stage.memory([record(), record(WorkerKey("w2", 1))]))
    assert not first.all("run")
    stage.worker("w2")
    assert router.last("placed").request_id == "q"


@pytest.mark.parametrize("event", ["learn", "memory"])
def test_who_does_not_lead_has_no_memory(stage, event):
    stage.act(stage.core.end)
    assert not (stage.core.memory().workers if event == "memory" else stage.act(stage.core.learn, stage.memory([])))
    assert stage.apply(action_id="a", drain=ss.ApplyRequest().drain).outcome is Outcome.NOT_LEADER
