"""The election: single steps, and two candidates around one Redis under any delays, stalls and outages."""

from __future__ import annotations

import pytest
from election_rig import MS, STEP_US, TIMING, World
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis_scheduler.core.election import Acquire, Election, Lease, Probe, Renew, StepDown

faults = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.integers(1, 80)),
        st.tuples(st.just("away"), st.integers(1, 80)),
        st.tuples(st.sampled_from(["sleep_a", "sleep_b"]), st.integers(1, 80)),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(faults, st.randoms(use_true_random=False))
def test_no_epoch_ever_has_two_leaders_and_one_leads_in_the_end(story, random):
    world = World(lambda: random.choice((0, 1, 1, 2, 5, 20, 45)) * STEP_US)
    for what, steps in story:
        if what.startswith("sleep"):
            world.asleep_until_us[what[-1]] = world.now_us + steps * STEP_US
        world.redis.away = what == "away"
        world.run(steps * STEP_US)
    world.redis.away = False
    epochs = [epoch for epoch, _ in world.led]
    assert len(epochs) == len(set(epochs))
    world._delays = lambda: 0
    world.asleep_until_us = dict.fromkeys("ab", 0)
    world.run(40_000 * MS)
    assert len(world.leaders()) == 1
    assert world.candidates[world.leaders()[0]].epoch == max(epoch for epoch, _ in world.led)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.booleans(), st.integers(1, 60)), max_size=5))
def test_leadership_does_not_change_while_redis_is_away_or_comes_back_empty(outages):
    world = World(lambda: STEP_US)
    world.run(5_000 * MS)
    (leader,) = world.leaders()
    for away_steps, empty, back_steps in outages:
        world.redis.away = True
        world.run(away_steps * STEP_US)
        world.redis.away = False
        if empty:
            world.redis.empty()
        world.run(back_steps * STEP_US)
        assert world.leaders() == [leader] and world.led == [(1, leader)]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 60))
def test_a_sleeping_leader_is_replaced_within_a_lease_and_never_acts_again(offset, extra):
    world = World(lambda: 0)
    world.run(5_000 * MS + offset * STEP_US)
    (old,) = world.leaders()
    asleep_us = TIMING.lease_us + 1_000 * MS
    world.asleep_until_us[old] = world.now_us + asleep_us + extra * STEP_US
    world.run(asleep_us)
    new = next(name for name in "ab" if name != old)
    assert new in world.leaders()
    while world.leaders() != [new]:
        assert not world.candidates[old].may_act(world.now_us) or world.now_us < world.asleep_until_us[old]
        world.run(STEP_US)
    assert [epoch for epoch, _ in world.led] == [1, 2]


def leader(now_us: int = 0) -> Election:
    election = Election("a", TIMING, now_us)
    (ask,) = election.tick(now_us)
    (ask,) = election.observed(ask.ticket, True, Lease("", 4, ""), 4, now_us)
    assert ask == Acquire(ask.ticket, 4)
    assert election.acquired(ask.ticket, 5, None, now_us)[0].fence.epoch == 5
    return election


def test_a_released_lease_is_taken_at_once():
    assert leader().leading


def test_a_cold_start_waits_a_whole_lease():
    world = World(lambda: 0)
    world.run(TIMING.lease_us - STEP_US)
    assert not world.led
    world.run(500 * MS)
    assert len(world.led) == 1


def test_an_answering_leader_keeps_its_office_though_its_lease_is_gone():
    election = Election("b", TIMING, 0)
    (ask,) = election.tick(0)
    election.observed(ask.ticket, True, Lease("a", 3, "a:1", 3_000 * MS), 3, 0)
    now_us = 0
    while not isinstance(ask, Probe):
        now_us += STEP_US
        for ask in election.tick(now_us):
            (ask,) = election.observed(ask.ticket, True, None, 3, now_us) or (ask,)
    assert ask.address == "a:1" and now_us >= TIMING.lease_us
    assert election.probed(ask.ticket, True, now_us) == []
    for _ in range(29):
        now_us += STEP_US
        for ask in election.tick(now_us):
            assert election.observed(ask.ticket, True, None, 3, now_us) == []


def test_an_acquisition_that_took_longer_than_its_lease_does_not_count():
    election = Election("a", TIMING, 0)
    (ask,) = election.tick(0)
    (ask,) = election.observed(ask.ticket, True, Lease("", 4, ""), 4, 0)
    assert election.acquired(ask.ticket, 5, None, TIMING.lease_us) == [] and not election.leading


def test_a_leader_that_slept_does_not_act_until_it_has_seen_its_lease():
    election = leader()
    woke_us = TIMING.lease_us + STEP_US
    assert not election.may_act(woke_us)
    (ask,) = election.tick(woke_us)
    assert isinstance(ask, Renew) and not election.may_act(woke_us)
    election.renewed(ask.ticket, True, True, None, woke_us)
    assert election.may_act(woke_us)


def test_a_leader_that_slept_and_cannot_find_out_steps_down():
    election = leader()
    now_us = TIMING.lease_us + STEP_US
    outputs = election.tick(now_us)
    while not isinstance(outputs[0], StepDown):
        assert not election.may_act(now_us)
        election.renewed(outputs[0].ticket, False, False, None, now_us)
        now_us += STEP_US
        outputs = election.tick(now_us) or outputs
    assert not election.leading and now_us <= 2 * TIMING.lease_us + 2 * STEP_US


def test_a_leader_goes_on_without_redis():
    election = leader()
    for step in range(1, 600):
        for ask in election.tick(step * STEP_US):
            assert election.renewed(ask.ticket, False, False, None, step * STEP_US) == []
    assert election.may_act(600 * STEP_US)


@pytest.mark.parametrize("epoch, stays", [(4, True), (5, False), (9, False)])
def test_a_leader_steps_down_for_an_epoch_that_is_not_below_its_own(epoch, stays):
    election = leader()
    outputs = election.heard(epoch, 0)
    assert election.leading is stays
    if not stays:
        assert outputs[0].epoch == 5
        (ask,) = election.tick(TIMING.renew_us)
        (ask,) = election.observed(ask.ticket, True, Lease("", 5, ""), 5, TIMING.renew_us)
        assert ask.floor >= epoch


def test_a_later_leader_ends_an_older_one():
    election = leader()
    (ask,) = election.tick(TIMING.renew_us)
    outputs = election.renewed(ask.ticket, True, False, Lease("b", 6, "b:1", 1), TIMING.renew_us)
    assert isinstance(outputs[0], StepDown) and election.last_known.address == "b:1"


def test_a_lease_that_vanishes_is_free_only_a_whole_lease_after_its_last_renewal():
    election = Election("b", TIMING, 0)
    seen_us, now_us, questions = 10_000 * MS, 0, []
    while now_us < seen_us + 2 * TIMING.lease_us and not questions:
        now_us += STEP_US
        for ask in election.tick(now_us):
            lease = Lease("a", 3, "a:1", TIMING.lease_us - 500 * MS) if now_us <= seen_us else None
            questions = election.observed(ask.ticket, True, lease, 3, now_us)
    renewed_us = seen_us - 500 * MS
    assert isinstance(questions[0], Probe)
    assert renewed_us + TIMING.lease_us - 300 * MS <= now_us <= renewed_us + TIMING.lease_us + 500 * MS
