"""What the scheduler hears of this worker: load, stalls, standing, and how soon."""

from __future__ import annotations

from worker_rig import FIRST, SECOND, Update, ready

from hyperflexis.common.v1 import capability_pb2, sampling_pb2, slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.effects import AddSequence, DropScheduler, ToScheduler
from hyperflexis_worker.core.engine_event import EndedAttempt, EngineEvent
from hyperflexis_worker.core.reporting import NEWS_INTERVAL_US
from hyperflexis_worker.core.request import PREEMPTIONS_TOLD


def test_load_counts_what_the_engine_has_not_seen_yet() -> None:
    rig = ready()
    rig.run("a")
    rig.start("a")
    rig.run("b")
    load = rig.core.requests.load(rig.now_us)
    assert (load.waiting, load.queued_prefill_tokens) == (1, 6), "b waits for its Start, not for the engine"
    rig.take(rig.core.engine_stepped(EngineEvent(adds_applied=1, running=1, queued_prefill_tokens=1), rig.now_us))
    load = rig.core.requests.load(rig.now_us)
    assert (load.waiting, load.running, load.queued_prefill_tokens) == (0, 1, 4)


def test_a_stall_shows_only_while_there_is_work() -> None:
    rig = ready()
    rig.now_us += 60 * SECOND
    assert rig.core.requests.load(rig.now_us).stalled_us == 0
    rig.run()
    rig.start()
    assert rig.core.requests.load(rig.now_us).stalled_us == 0
    assert rig.core.requests.load(rig.now_us + 3 * SECOND).stalled_us == 3 * SECOND


def test_reports_come_each_second_and_at_once_with_news() -> None:
    rig = ready()
    rig.pass_time(500_000)
    assert not rig.of(ToScheduler)
    rig.pass_time(500_001)
    assert len(rig.of(ToScheduler)) == 1
    rig.pass_time(30_000)
    rig.command(cancel=ws.Cancel(request_id="x", attempt=Attempt(1, 1).proto()))
    (effect,) = rig.of(ToScheduler)
    assert isinstance(effect, ToScheduler)
    assert effect.message.report.applied_seq == 1


def test_runs_whose_starts_never_come_are_no_stall() -> None:
    rig = ready()
    for number in range(40):
        rig.run(f"r{number}")
        rig.pass_time(100_000)
        load = rig.core.requests.load(rig.now_us)
        assert (load.waiting, load.running, load.stalled_us) == (0, 0, 0)


def test_what_was_cancelled_is_no_work_but_its_answer_is_owed() -> None:
    """An engine that hangs must not look idle, and be given the next request, because everything was cancelled."""
    rig = ready()
    rig.run()
    rig.start()
    rig.command(cancel=ws.Cancel(request_id="a", attempt=FIRST.proto()))
    load = rig.core.requests.load(rig.now_us + 3 * SECOND)
    assert (load.waiting, load.queued_prefill_tokens, load.stalled_us) == (1, 0, 3 * SECOND)
    rig.take(rig.core.engine_stepped(EngineEvent(adds_applied=1), rig.now_us))
    load = rig.core.requests.load(rig.now_us + 3 * SECOND)
    assert (load.waiting, load.queued_prefill_tokens, load.stalled_us) == (0, 0, 0)


def test_news_goes_at_once_and_what_follows_closely_goes_together() -> None:
    rig = ready()
    rig.pass_time(SECOND)
    rig.pass_time(NEWS_INTERVAL_US)
    for name, attempt in (("a", Attempt(1, 1)), ("b", Attempt(1, 2)), ("c", Attempt(1, 3))):
        rig.run(name, attempt)
        rig.start(name, attempt)
    rig.pass_time(SECOND)
    rig.now_us += NEWS_INTERVAL_US
    rig.step(("a", Attempt(1, 1), 0, 5))
    assert rig.told() == [("a", Update.KIND_STARTED), ("a", Update.KIND_FIRST_TOKEN)]
    rig.now_us += 1_000
    rig.step(("b", Attempt(1, 2), 0, 5))
    rig.now_us += 1_000
    rig.step(("c", Attempt(1, 3), 0, 5))
    assert rig.told() == []
    rig.pass_time(NEWS_INTERVAL_US - 2_000)
    assert [name for name, _ in rig.told()] == ["b", "b", "c", "c"]
    assert len(rig.reports()) == 1


def test_load_alone_is_reported_ten_times_a_second_at_most() -> None:
    rig = ready()
    rig.run()
    rig.start()
    rig.step(("a", FIRST, 0, 5))
    rig.pass_time(SECOND)
    reports = 0
    for index in range(1, 101):
        rig.now_us += 10_000
        event = EngineEvent(adds_applied=1, running=1, steps=index)
        rig.take(rig.core.engine_stepped(event, rig.now_us))
        reports += len(rig.reports())
    assert reports == 10


def test_a_change_of_readiness_or_role_waits_for_nothing() -> None:
    rig = ready()
    rig.pass_time(SECOND)
    rig.lose_engine()
    assert [report.readiness for report in rig.reports()] == [capability_pb2.READINESS_LOADING]
    rig.engine_ready()
    assert [report.readiness for report in rig.reports()] == [capability_pb2.READINESS_READY]
    rig.command(set_role=ws.SetRole(role=capability_pb2.ROLE_DECODE))
    assert [report.role for report in rig.reports()] == [capability_pb2.ROLE_DECODE]


def ping(rig, delay_us: int, epoch: int = 1) -> None:
    message = rs.Ping(id=7, one_way_delay_us=delay_us)
    rig.take(rig.core.scheduler_message(ws.WorkerSessionResponse(epoch=epoch, ping=message), rig.now_us))


def test_ages_are_corrected_by_the_delay_that_the_scheduler_measured() -> None:
    rig = ready()
    ping(rig, 30_000)
    (effect,) = rig.of(ToScheduler)
    assert (effect.message.pong.id, effect.message.pong.highest_fence.epoch) == (7, 1)
    rig.start()
    rig.command(run=ws.Run(request_id="a", attempt=FIRST.proto(), prompt_tokens=3, max_tokens=8, age_us=200_000))
    (add,) = rig.of(AddSequence)
    assert add.sequence.arrival_us == rig.now_us - 230_000


def test_a_delay_is_of_its_session_alone() -> None:
    rig = ready()
    ping(rig, 30_000)
    rig.take(rig.core.scheduler_closed(rig.now_us))
    rig.connect(epoch=2)
    rig.start()
    rig.command(2, run=ws.Run(request_id="a", attempt=FIRST.proto(), prompt_tokens=3, max_tokens=8, age_us=200_000))
    (add,) = rig.of(AddSequence)
    assert add.sequence.arrival_us == rig.now_us - 200_000


def test_a_ping_of_a_stale_leader_ends_its_session() -> None:
    rig = ready()
    rig.connect(epoch=5)
    ping(rig, 30_000, epoch=4)
    assert rig.of(DropScheduler) and not rig.of(ToScheduler)


def test_a_session_that_does_not_begin_with_registered_is_ended() -> None:
    rig = ready()
    rig.take(rig.core.scheduler_closed(rig.now_us))
    ping(rig, 30_000)
    (drop,) = rig.of(DropScheduler)
    assert drop.reason == "ping came where registered was due" and not rig.of(ToScheduler)


def test_a_request_given_up_is_told_to_the_scheduler_and_not_to_its_router() -> None:
    """Its router would submit it again at once, as failed, before the scheduler knows why."""
    rig = ready()
    rig.run()
    rig.start()
    rig.take(
        rig.core.engine_stepped(
            EngineEvent(adds_applied=1, given_up=[("a", FIRST, slo_pb2.Decision(reason="hopeless"))]), rig.now_us
        )
    )
    assert not rig.gone() and rig.core.requests.unfinished == 0
    rig.pass_time(NEWS_INTERVAL_US)
    reports = [effect.message.report for effect in rig.of(ToScheduler) if isinstance(effect, ToScheduler)]
    [update] = [update for report in reports for update in report.updates if update.kind == Update.KIND_GAVE_UP]
    assert update.request_id == "a" and update.decision.reason == "hopeless"


def test_what_is_told_later_says_how_long_ago_it_was() -> None:
    rig = ready()
    rig.run()
    rig.start()
    rig.pass_time(SECOND)
    rig.step(("a", FIRST, 0, 7))
    rig.pass_time(1_000)  # a report has just gone: this waits for the next one
    rig.pass_time(NEWS_INTERVAL_US)
    ages = {update.kind: update.decision.age_us for report in rig.reports() for update in report.updates}
    assert ages == {Update.KIND_STARTED: NEWS_INTERVAL_US + 1_000, Update.KIND_FIRST_TOKEN: NEWS_INTERVAL_US + 1_000}


def test_preemptions_are_told_one_by_one_at_first_and_counted_at_the_end() -> None:
    rig = ready()
    rig.run()
    rig.start()
    told = []
    for round_ in range(7):
        event = EngineEvent(adds_applied=1, preempted=[("a", FIRST, 40 + round_), ("unknown", FIRST, 1)])
        rig.take(rig.core.engine_stepped(event, rig.now_us))
        rig.pass_time(SECOND)
        told += [update for report in rig.reports() for update in report.updates]
    assert [update.kind for update in told] == [Update.KIND_PREEMPTED] * PREEMPTIONS_TOLD
    assert [update.decision.numbers["recompute_tokens"] for update in told] == [40, 41, 42, 43]
    ended = EndedAttempt("a", FIRST, sampling_pb2.FINISH_REASON_LENGTH, cached_tokens=16)
    rig.take(rig.core.engine_stepped(EngineEvent(adds_applied=1, ended=[ended]), rig.now_us))
    rig.pass_time(SECOND)
    [finish] = [update for report in rig.reports() for update in report.updates]
    assert dict(finish.decision.numbers) == {"preemptions": 7.0, "cached_tokens": 16.0}
