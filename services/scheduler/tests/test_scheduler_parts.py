"""The small parts of the core against the plainest model of each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hyperflexis.common.v1 import slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.turns import TURNS_US
from hyperflexis_scheduler.config import SchedulerSettings
from hyperflexis_scheduler.core.book import Book
from hyperflexis_scheduler.core.dispatch_policy import (
    POLICIES,
    Ask,
    EarliestFirstToken,
    Prospect,
    RoundRobin,
    in_time,
    least_queued_tokens,
    least_requests,
)
from hyperflexis_scheduler.core.heartbeat import Heartbeat
from hyperflexis_scheduler.core.hold import HoldQueue
from hyperflexis_scheduler.core.ledger import Ledger
from hyperflexis_scheduler.core.loads import C0, C2, C3, QUEUED_TOKENS, QUEUED_US, REQUESTS, SHARE, Slots, WorkerLoads
from hyperflexis_scheduler.core.request import Phase
from hyperflexis_scheduler.core.tally import MAX_TIERS, OTHER, Tally
from hyperflexis_scheduler.faults import Faults

names = st.sampled_from("abcdef")


class TestLedger:
    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=40))
    def test_it_holds_every_charge_beyond_the_report(self, events):
        ledger, charges, seq = Ledger(), {}, 0
        for is_charge, value in events:
            if is_charge:
                seq += 1
                charges[seq] = value
                ledger.charge(seq, f"q{seq}", value, 3 * value, TURNS_US[value % 7])
            else:
                ledger.apply(min(value, seq))
                charges = {at: tokens for at, tokens in charges.items() if at > ledger.applied_seq}
            assert ledger.tokens == sum(charges.values())
            assert ledger.before_us.tolist() == [
                sum(3 * tokens for tokens in charges.values() if tokens % 7 <= edge) for edge in range(8)
            ]
            assert len(ledger) == len(charges)
            assert all(ledger.in_flight(f"q{at}") == (at in charges) for at in range(1, seq + 1))

    def test_a_new_session_starts_counting_anew(self):
        ledger = Ledger()
        ledger.charge(9, "q", 10, 200, 0.0)
        ledger.restart()
        assert (len(ledger), ledger.tokens, ledger.before_us.any()) == (0, 0, False)
        ledger.charge(1, "q", 10, 200, 0.0)
        assert ledger.in_flight("q")


class TestHoldQueue:
    @given(st.lists(st.tuples(st.sampled_from(["add", "remove"]), names, st.integers(0, 9)), max_size=40))
    def test_order_is_by_key_then_arrival(self, events):
        queue, model = HoldQueue(limit=100), []
        for number, (what, name, key) in enumerate(events):
            if what == "remove":
                queue.remove(name)
                model = [entry for entry in model if entry[2] != name]
            elif name not in queue:
                queue.add(name, "m", key, number)
                model.append((key, number, name))
        assert queue.all("m") == [name for _, _, name in sorted(model)]
        assert len(queue) == len(model) and queue.all("n") == []

    def test_expiry_is_by_the_time_of_holding(self):
        queue = HoldQueue(limit=2)
        queue.add("late", "m", 1, 100)
        queue.add("later", "n", 0, 200)
        assert queue.expired(50, 160) == ["late"] and len(queue) == 2

    def test_it_is_bounded(self):
        queue = HoldQueue(limit=1)
        queue.add("a", "m", 1, 0)
        with pytest.raises(OverflowError):
            queue.add("b", "m", 1, 0)


class TestBook:
    @given(st.lists(st.tuples(names, st.sampled_from(list(Phase)), st.integers(0, 30)), max_size=40))
    def test_live_requests_stay_and_ended_ones_expire(self, events):
        book, now_us, ended = Book(retention_us=50, retained_limit=4), 0, {}
        live = set()
        for name, phase, passed in events:
            now_us += passed
            state = book.get(name) or book.add(name, now_us)
            book.move(state, phase, now_us)
            ended.pop(name, None)
            live.discard(name)
            if phase.active:
                live.add(name)
            else:
                ended[name] = now_us
                if len(ended) > 4:
                    del ended[next(iter(ended))]
            ended = {other: at for other, at in ended.items() if at + 50 > now_us}
            book.expire(now_us)
            assert book.active == len(live)
            assert all((book.get(other) is not None) == (other in live or other in ended) for other in "abcdef")


class TestHeartbeat:
    def test_only_the_answer_to_the_newest_ping_measures(self):
        pulse = Heartbeat(0)
        first = pulse.ping(1_000, 0)
        assert pulse.ping(1_000, 500) is None
        second = pulse.ping(1_000, 1_000)
        pulse.pong(first.id, 9_000)
        assert pulse.one_way_us == 0
        pulse.pong(second.id, 1_200)
        pulse.pong(second.id, 99_000)
        assert pulse.one_way_us == 100

    def test_a_stall_spoils_the_measurement_and_excuses_the_silence(self):
        pulse = Heartbeat(0)
        ping = pulse.ping(1_000, 0)
        pulse.forgive(5_000, 5_000)
        pulse.pong(ping.id, 5_000)
        assert pulse.one_way_us == 0 and pulse.heard_us == 5_000


def loads_of(*workers: dict[int, float]) -> tuple[WorkerLoads, Slots]:
    """20 us a token where nothing else is said."""
    loads = WorkerLoads(len(workers))
    for columns in workers:
        slot = loads.open()
        for field, value in ({C2: 20.0} | columns).items():
            if field == QUEUED_US:
                loads.queue(slot, value)
            else:
                loads.set(slot, field, value)
    return loads, np.arange(len(workers))


def ask(tokens: int = 100, age_us: float = 0.0, ttft_us: float = 1_000_000.0) -> Ask:
    return Ask(tokens, age_us, ttft_us, 50_000.0, 50)


class TestPolicies:
    def test_round_robin_takes_turns(self):
        loads, among = loads_of({}, {}, {})
        policy = RoundRobin()
        assert [policy.choose(ask(), loads, among[1:]).slot for _ in range(4)] == [1, 2, 1, 2]

    @given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.booleans())
    def test_the_least_of_a_number_is_taken_in_turn(self, counts, tokens):
        field, policy, name = (
            (QUEUED_TOKENS, least_queued_tokens(), "queued_tokens")
            if tokens
            else (REQUESTS, least_requests(), "requests")
        )
        loads, among = loads_of(*({field: count} for count in counts))
        ties = [slot for slot, count in enumerate(counts) if count == min(counts)]
        for turn in range(2 * len(ties)):
            choice = policy.choose(ask(), loads, among)
            assert choice.slot == ties[turn % len(ties)]
            assert choice.reason == f"least_{name}"
            assert choice.numbers == {"candidates": len(counts), name: min(counts)}

    def test_the_first_token_comes_earliest_where_queue_and_own_prefill_over_the_share_are_least(self):
        queued = {QUEUED_US: 10_000.0}
        loads, among = loads_of(queued | {SHARE: 0.5}, queued | {REQUESTS: 2}, queued | {C2: 40.0})
        choice = EarliestFirstToken().choose(ask(500, age_us=3_000), loads, among)
        # (10 + 10) / 0.5 = 40 ms; 20 ms and 2 ms for two requests; 10 + 20 ms.
        assert choice.slot == 1 and choice.reason == "earliest_first_token"
        assert choice.foretold == Prospect(ask(500, age_us=3_000), loads.view(among)).of(1)
        assert choice.foretold == {
            "queued_prefill_us": 10_000,
            "ahead_prefill_us": 10_000,
            "own_prefill_us": 10_000,
            "prefill_share": 1,
            "requests": 2,
            "predicted_ttft_us": 23_000,
            "turn_us": 1_000_000 - 3_000 + 10 * 10_000,
        }

    workers = st.lists(
        st.fixed_dictionaries(
            {
                QUEUED_US: st.integers(0, 200) | st.just(5_000),
                SHARE: st.sampled_from([0.25, 0.5, 1.0]),
                REQUESTS: st.integers(0, 3),
                C0: st.integers(0, 50),
                C2: st.sampled_from([0.5, 1.0, 2.0]),
                C3: st.sampled_from([0.0, 0.25]),
            }
        ),
        min_size=1,
        max_size=6,
    )

    @given(workers, st.integers(1, 64), st.integers(0, 100), st.integers(0, 500))
    def test_in_time_are_those_whose_queue_own_prefill_and_step_fit(self, workers, tokens, age_us, ttft_us):
        loads, among = loads_of(*workers)
        expected, best = [], (float("inf"), 0)
        for slot, row in enumerate(workers):
            prefill_us = (row[QUEUED_US] + tokens * row[C2] + row[C3] * tokens * tokens / 2) / row[SHARE]
            best = min(best, (prefill_us + 1_000 * row[REQUESTS], slot))
            if age_us + prefill_us + row[C0] <= ttft_us:
                expected.append(slot)
        request = ask(tokens, age_us, ttft_us)
        assert in_time(request, loads, among).tolist() == expected
        assert EarliestFirstToken(harm_us=0.0).choose(request, loads, among).slot == best[1]

    def test_only_the_deadline_orders_what_waits_and_only_for_its_own_policy(self):
        keys = {name: policy().hold_key(77) for name, policy in POLICIES.items()}
        assert keys == {"hyperflexis": 77, "round_robin": 0, "least_requests": 0, "jsq": 0}

    def test_settings_name_each_of_them(self):
        assert [SchedulerSettings(policy=name).policy for name in POLICIES] == list(POLICIES)
        assert SchedulerSettings().policy == "hyperflexis"


def test_tiers_without_end_share_one_entry():
    tally = Tally()
    for number in range(2 * MAX_TIERS):
        tally.tier(f"t{number}").submitted += 1
    assert len(tally.tiers()) == MAX_TIERS + 1 and tally.tier(OTHER).submitted == MAX_TIERS


def test_answers_of_unknown_length_do_not_count_for_the_mean():
    tally = Tally()
    before = tally.output_tokens("chat")
    tally.finished("chat", 100, 0)
    assert tally.output_tokens("chat") == before and tally.tier("chat").finished == 1
    for _ in range(1_000):
        tally.finished("chat", 100, 30)
    assert abs(tally.output_tokens("chat") - 30) < 3


class TestFaults:
    placed = rs.RouterSessionResponse(placed=rs.Placed())
    run = ws.WorkerSessionResponse(run=ws.Run())

    def test_off_unless_set(self):
        faults = Faults("")
        faults.drop_next("placed")
        assert not faults.enabled and not faults.drops(self.placed)

    def test_the_first_messages_of_a_kind_are_dropped_after_begin(self):
        faults = Faults("drop_placed=2, drop_run=1")
        assert not faults.drops(self.placed)
        faults.begin()
        assert [faults.drops(self.placed) for _ in range(3)] == [True, True, False]
        assert [faults.drops(self.run) for _ in range(2)] == [True, False]

    def test_signals_drop_the_next(self):
        faults = Faults("signals")
        faults.begin()
        assert not faults.drops(self.run)
        faults.drop_next("run")
        assert faults.drops(self.run) and not faults.drops(self.run)

    def test_a_repeated_placed_is_not_what_was_meant(self):
        faults = Faults("signals")
        faults.drop_next("placed")
        assert not faults.drops(rs.RouterSessionResponse(placed=rs.Placed(started=True)))
        assert faults.drops(self.placed)


class TestSettings:
    def test_tiers_become_promises(self):
        tiers = [
            {"name": "chat", "ttft_ms": 500, "tpot_ms": 50, "on_violation": "downgrade:batch"},
            {"name": "batch", "ttft_ms": 60_000, "tpot_ms": 200},
        ]
        rules = SchedulerSettings(tiers=tiers, hold_seconds=2).rules()
        chat, batch = rules.tiers["chat"], rules.tiers["batch"]
        assert (chat.ttft_us, chat.tpot_us, chat.max_gap_us) == (500_000, 50_000, 250_000)
        assert chat.on_violation == slo_pb2.ON_VIOLATION_DOWNGRADE and chat.downgrade_tier == "batch"
        assert batch.max_gap_us == 800_000 and rules.hold_us == 2_000_000

    def test_a_downgrade_to_nowhere_is_an_error(self):
        with pytest.raises(ValidationError, match="'nowhere', which is not a tier"):
            SchedulerSettings(tiers=[{"name": "c", "ttft_ms": 1, "tpot_ms": 1, "on_violation": "downgrade:nowhere"}])
