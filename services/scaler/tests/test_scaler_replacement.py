"""FleetCore: what dies, hangs or is found, and what the scaler before began."""

from __future__ import annotations

import pytest

from hyperflexis_scaler.core.action import Action, Intent, Kind
from hyperflexis_scaler.core.backoff import BackOff

from .fleet_bench import Bench, S, kinds, worker


def test_the_dead_are_reaped_at_once_and_replaced_after_the_back_off() -> None:
    bench = Bench()
    victim = bench.running()[0]
    bench.dead.add(victim)
    (reap,) = bench.plan(after=S)
    assert (kinds([reap]), reap.instance_id) == (["reap!"], victim)
    bench.settle([reap])
    del bench.born[victim]
    assert bench.plan(after=S - 1) == []
    assert kinds(bench.plan(after=1)) == ["start"]


def test_one_that_vanished_is_replaced_after_the_back_off() -> None:
    bench = Bench()
    del bench.born[bench.running()[0]]
    assert bench.plan() == []
    bench.view()
    assert kinds(bench.plan(after=S)) == ["start"]


def test_a_crash_loop_backs_off_and_is_shown() -> None:
    bench = Bench(target=1, count_external=False)
    delays = []
    for _ in range(8):
        waited = 0
        while not (starts := [a for a in bench.plan() if a.kind is Kind.START]):
            bench.now += S // 4
            waited += S // 4
        delays.append(round(waited / S))
        bench.settle(starts)
        bench.look()
        bench.born.clear()
    assert delays == [0, 1, 2, 4, 8, 16, 30, 30]
    assert bench.core.backoff["chat"].loops(bench.now)


def test_a_long_life_ends_the_crash_loop() -> None:
    backoff = BackOff()
    for _ in range(5):
        backoff.failed(backoff.until_us, 0)
    assert backoff.failures == 5
    backoff.failed(backoff.until_us, 60 * S)
    assert backoff.failures == 1
    before = backoff.until_us
    backoff.failed(before - 1, 0)
    assert (backoff.failures, backoff.until_us) == (1, before), "the same incident"


def test_a_hung_worker_is_replaced_after_thirty_seconds() -> None:
    bench = Bench(target=1)
    (key,) = bench.running()
    for _ in range(31):
        assert bench.plan() == []
        bench.now += S
        bench.view(worker(key, hung=True))
    (stop,) = bench.plan(after=S)
    assert (stop.kind, stop.instance_id) == (Kind.STOP, key)
    bench.view(worker(key, hung=True))
    assert kinds(bench.plan(after=S)) == ["stop", "start"], "the maximum leaves room beside it"


def test_a_hung_worker_that_recovers_stays() -> None:
    bench = Bench(target=1)
    (key,) = bench.running()
    for second in range(90):
        bench.now += S
        bench.view(worker(key, hung=second % 25 != 0))
        assert bench.plan() == []


def test_a_process_that_left_the_cluster_is_replaced_and_killed() -> None:
    bench = Bench(target=1, maximum=1)
    (key,) = bench.running()
    planned: list[Action] = []
    for _ in range(45):
        bench.now += S
        bench.view()
        planned += (now := bench.plan())
        bench.settle(now)
    assert kinds(planned)[:2] == ["stop", "stop!"] and set(kinds(planned[2:])) == {"stop!"}
    assert {action.instance_id for action in planned} == {key}
    assert "left the cluster" in planned[0].reason


def test_no_worker_is_judged_by_a_stale_view() -> None:
    bench = Bench(target=1)
    bench.running()
    assert bench.plan(after=600 * S) == []
    bench.view()
    assert bench.plan() == [], "the timer begins with the new view"


def test_instances_of_unknown_groups_are_reaped_others_adopted() -> None:
    bench = Bench(target=1)
    bench.born = {"chat-0-b-1": 0, "old-0-b-2": 0}
    adopt, reap = bench.plan()
    assert (adopt.kind, adopt.instance_id) == (Kind.ADOPT, "chat-0-b-1")
    assert (reap.kind, reap.instance_id) == (Kind.DRAIN, "old-0-b-2")
    assert "not configured" in reap.reason


def test_what_the_last_scaler_began_goes_on() -> None:
    bench = Bench(target=1, maximum=1, count_external=False, term="2-b")
    bench.born = {"chat-1-a-1": 0}
    bench.core.recover(
        bench.now,
        [
            Intent("1-a-2", Kind.STOP, "chat", "chat-1-a-1", 2 * S, "because"),
            Intent("1-a-3", Kind.STOP, "chat", "chat-1-a-0", 2 * S),
            Intent("1-a-4", Kind.START, "chat", "chat-1-a-4", 2 * S),
        ],
    )
    (stop,) = bench.plan()
    assert (stop.action_id, stop.kind, stop.reason) == ("1-a-2", Kind.STOP, "because")
    assert bench.core.take_closed() == {"1-a-3"}, "its instance is gone"
    del bench.born["chat-1-a-1"]
    assert bench.plan(after=2 * S) == [], "the start of the last scaler may still come"
    assert kinds(bench.plan(after=1)) == ["start"]


def test_open_intents_restore_a_lost_log() -> None:
    bench = Bench()
    key, _ = bench.running()
    bench.core.set_target("chat", 1)
    drain = bench.plan()
    bench.core.set_target("chat", 3)
    starts = bench.plan()
    assert {(i.action_id, i.kind) for i in bench.core.open_intents()} == {
        (action.action_id, action.kind) for action in drain + starts
    }


def test_an_intent_survives_its_json() -> None:
    intent = Intent("1-a-2", Kind.DRAIN, "chat", "chat-1-a-1", 5, "why")
    assert Intent.from_json(intent.to_json()) == intent
    for text in ("{}", "[]", "nonsense", '{"action_id": 1, "kind": "fly"}'):
        with pytest.raises(ValueError):
            Intent.from_json(text)
