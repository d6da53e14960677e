"""FleetCore: growing, shrinking, counting, telling."""

from __future__ import annotations

import pytest

from hyperflexis.common.v1 import identity_pb2
from hyperflexis_scaler.core.action import Outcome
from hyperflexis_scaler.core.fleet import OverLimit, UnknownGroup
from hyperflexis_scaler.core.report import fleet_report

from .fleet_bench import DRAINING, Bench, S, external, kinds, worker


def test_nothing_is_decided_before_the_first_list() -> None:
    bench = Bench(count_external=False)
    assert bench.plan(listed=False) == []
    assert kinds(bench.plan()) == ["start", "start"]


def test_a_pending_start_is_not_started_again() -> None:
    bench = Bench(maximum=8, count_external=False)
    first = bench.plan()
    assert bench.plan(after=S) == []
    for action in first:
        bench.core.settled(bench.now, action, Outcome.UNKNOWN)
    assert bench.plan(after=2 * S) == []
    assert len(bench.core.pending) == 2, "they may still come"
    assert bench.plan(after=1) == []
    assert not bench.core.pending, "they cannot come any more; backing off"
    assert len(bench.plan(after=S)) == 2


def test_a_late_instance_fills_its_own_place() -> None:
    bench = Bench(target=1, count_external=False)
    (start,) = bench.plan()
    bench.core.settled(bench.now, start, Outcome.UNKNOWN)
    bench.now += S
    bench.born[start.instance_id] = bench.now
    assert bench.plan() == []
    assert bench.core.take_closed() == {start.action_id}


def test_what_comes_and_what_goes_both_hold_their_places() -> None:
    bench = Bench(target=1, maximum=2)
    (key,) = bench.running()
    bench.core.set_target("chat", 0)
    bench.settle(bench.plan())
    bench.core.set_target("chat", 2)
    assert kinds(bench.plan()) == ["start"], f"{key} drains"
    assert bench.plan() == []


def test_a_skipped_start_leaves_no_trace() -> None:
    bench = Bench(count_external=False)
    bench.settle(bench.plan(), Outcome.SKIPPED)
    assert len(bench.plan()) == 2
    assert not list(bench.core.history)


def test_growth_waits_for_the_cluster_where_external_workers_count() -> None:
    bench = Bench()
    assert bench.plan(after=60 * S) == []
    bench.view(external("compose-1"))
    assert bench.plan(after=S - 1) == []
    bench.view(external("compose-1"))
    assert kinds(bench.plan(after=1)) == ["start"]


def test_an_external_worker_is_missed_after_its_grace_only() -> None:
    bench = Bench(target=1)
    bench.view(external("compose-1"))
    assert bench.plan(after=2 * S) == []
    bench.view(epoch=2)
    assert bench.plan(after=S) == []
    bench.now += 9 * S
    bench.view(epoch=2)
    assert kinds(bench.plan()) == ["start"]


def test_nobody_is_missed_while_the_scheduler_is_away() -> None:
    bench = Bench(target=1)
    bench.view(external("compose-1"))
    for _ in range(100):
        assert bench.plan(after=S) == []


def test_a_worker_that_does_not_count_is_not_counted() -> None:
    bench = Bench(target=1, count_external=False)
    bench.view(external("compose-1"))
    assert kinds(bench.plan(after=2 * S)) == ["start"]


def test_scale_in_drains_waits_for_the_load_and_stops() -> None:
    bench = Bench()
    busy, idle = bench.running()
    bench.view(worker(busy, running=5), worker(idle, running=1))
    bench.core.set_target("chat", 1)
    (drain,) = bench.plan()
    assert (kinds([drain]), drain.instance_id) == (["drain"], idle), "the least burdened"
    bench.settle([drain])
    bench.view(worker(busy), worker(idle))
    assert bench.plan(after=S) == [], "empty, but a view from before the drain"
    bench.view(worker(busy), worker(idle, DRAINING, running=1))
    assert bench.plan(after=S) == []
    bench.view(worker(busy), worker(idle, DRAINING))
    (stop,) = bench.plan(after=S)
    assert (kinds([stop]), stop.instance_id, stop.action_id) == (["stop"], idle, drain.action_id)
    bench.settle([stop])
    assert bench.plan(after=10 * S - 1) == []
    assert kinds(bench.plan(after=1)) == ["stop!"]
    assert kinds(bench.plan(after=S)) == ["stop!"], "until it is gone"
    del bench.born[idle]
    assert bench.plan(after=S) == []
    assert drain.action_id in bench.core.take_closed()


def test_a_drain_that_never_empties_ends_with_its_timeout() -> None:
    bench = Bench()
    key, _ = bench.running()
    bench.core.set_target("chat", 1)
    (drain,) = bench.plan()
    bench.settle([drain])
    for _ in range(59):
        bench.now += S
        bench.view(*(worker(k, DRAINING, running=1) for k in bench.born))
        assert bench.plan() == []
    assert kinds(bench.plan(after=S)) == ["stop"]


def test_a_drain_is_repeated_until_it_is_answered() -> None:
    bench = Bench()
    bench.running()
    bench.core.set_target("chat", 1)
    (first,) = bench.plan()
    bench.settle([first], Outcome.UNKNOWN)
    assert bench.plan(after=S - 1) == []
    assert bench.plan(after=1) == [first]
    bench.settle([first], Outcome.MISSING)
    assert kinds(bench.plan()) == ["stop"], "nothing to drain"


def test_what_serves_nobody_goes_first() -> None:
    bench = Bench()
    joined, starting = bench.running()
    bench.view(worker(joined))
    bench.core.set_target("chat", 1)
    (stop,) = bench.plan()
    assert (kinds([stop]), stop.instance_id) == (["stop"], starting), "and is not drained"


def test_targets_are_checked() -> None:
    core = Bench().core
    with pytest.raises(UnknownGroup, match="groups: chat"):
        core.set_target("nope", 1)
    with pytest.raises(OverLimit, match="may have 3"):
        core.set_target("chat", 4)


def test_the_report_tells_states_and_reasons() -> None:
    bench = Bench(target=3)
    bench.view(external("compose-1"))
    bench.settle(bench.plan(after=2 * S))
    first, second = sorted(bench.born)
    bench.look()
    bench.view(external("compose-1"), worker(first), worker(second, hung=True))
    report = fleet_report(bench.core, bench.now, identity_pb2.Fence(epoch=1), True)
    assert {i.worker_id: i.state for i in report.instances} == {
        first: "ready",
        second: "hung",
        "compose-1": "external",
    }
    bench.core.plan(bench.now)
    bench.view(external("compose-1"), worker(first))
    later = fleet_report(bench.core, bench.now, identity_pb2.Fence(epoch=1), True)
    assert {i.worker_id: i.state for i in later.instances}[second] == "absent"
    (group,) = report.groups
    assert (group.target, group.ready, group.starting, group.max) == (3, 2, 0, 3)
    assert [(a.kind, a.outcome) for a in report.recent_actions] == [("start", "done")] * 2
    assert report.recent_actions[0].reason == "target 3, running 0, starting 0, external 1"
