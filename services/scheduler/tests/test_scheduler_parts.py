"""The small parts of the core against the plainest model of each."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hyperflexis.common.v1 import identity_pb2, slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2 as rs
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_scheduler.config import SchedulerSettings
from hyperflexis_scheduler.core.book import Book
from hyperflexis_scheduler.core.dispatch import EdfByTier, LeastRequests, RoundRobin
from hyperflexis_scheduler.core.heartbeat import Heartbeat
from hyperflexis_scheduler.core.hold import HoldQueue
from hyperflexis_scheduler.core.ledger import DueWork, Ledger
from hyperflexis_scheduler.core.request import Phase, RequestState
from hyperflexis_scheduler.core.tally import MAX_TIERS, OTHER, Tally
from hyperflexis_scheduler.core.worker import WorkerState, work_due_us
from hyperflexis_scheduler.faults import Faults

names = st.sampled_from("abcdef")


def load(waiting: int, tokens: int) -> ws.WorkerLoad:
    return ws.WorkerLoad(waiting=waiting, queued_prefill_tokens=tokens)


class TestLedger:
    @given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=40))
    def test_load_is_the_report_plus_every_charge_beyond_it(self, events):
        ledger, charges, seq, reported = Ledger(), {}, 0, 0
        for is_charge, value in events:
            if is_charge:
                seq += 1
                charges[seq] = value
                ledger.charge(seq, f"q{seq}", value)
            else:
                applied, reported = min(value, seq), value
                ledger.apply(applied, load(value, value))
                charges = {at: tokens for at, tokens in charges.items() if at > ledger.applied_seq}
            assert ledger.queued_tokens == reported + sum(charges.values())
            assert ledger.requests == reported + len(charges)
            assert all(ledger.in_flight(f"q{at}") == (at in charges) for at in range(1, seq + 1))

    def test_a_new_session_starts_counting_anew(self):
        ledger = Ledger()
        ledger.charge(9, "q", 10)
        ledger.restart()
        assert ledger.requests == 0
        ledger.charge(1, "q", 10)
        assert ledger.in_flight("q")


class TestDueWork:
    @given(
        st.lists(st.tuples(names, st.integers(0, 20) | st.none(), st.integers(1, 9)), max_size=40),
        st.integers(0, 20),
        st.integers(0, 50),
    )
    def test_it_sums_what_is_due(self, events, deadline, unknown):
        """Through what dispatch asks; queued tokens of unknown deadline count as due."""
        due, model = DueWork(), {}
        for name, at, tokens in events:
            if at is None:
                due.remove(name)
                model.pop(name, None)
            else:
                due.add(name, at, tokens)
                model[name] = (at, tokens)
        ledger = SimpleNamespace(queued_tokens=due.total + unknown)
        worker = SimpleNamespace(due=due, ledger=ledger, us_per_token=3.0)
        expected = sum(tokens for at, tokens in model.values() if at <= deadline) + unknown
        assert work_due_us([worker], deadline) == [3.0 * expected]
        assert due.total == sum(tokens for _, tokens in model.values()) and len(due) == len(model)


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


def worker(name: str, requests: int = 0) -> WorkerState:
    identity = identity_pb2.WorkerIdentity(worker_id=name, incarnation=1)
    state = WorkerState(ws.Register(identity=identity, model="m"), 1, 0)
    state.ledger.apply(0, load(requests, 0))
    return state


def request(name: str, deadline_us: int, tokens: int = 100) -> RequestState:
    slo = slo_pb2.Slo(ttft_us=deadline_us)
    return RequestState(name, known=True, slo=slo, prompt_tokens=tokens)


class TestPolicies:
    def test_round_robin_takes_turns(self):
        workers, policy = [worker("a"), worker("b")], RoundRobin()
        assert [policy.choose(request("q", 1), workers).worker.key.worker_id for _ in range(4)] == ["a", "b"] * 2

    @given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
    def test_least_requests_takes_a_least_loaded_one(self, counts):
        workers = [worker(f"w{number}", count) for number, count in enumerate(counts)]
        choice = LeastRequests().choose(request("q", 1), workers)
        assert choice.worker.requests == min(counts) == choice.numbers["requests"]

    def test_a_tight_tier_sees_past_the_long_queue_of_a_loose_one(self):
        batch, chat = worker("batch"), worker("chat")
        batch.take(request("slow", 60_000_000, tokens=9_000))
        chat.take(request("quick", 500_000, tokens=200))
        assert EdfByTier().choose(request("q", 1_000_000), [batch, chat]).worker is batch
        assert EdfByTier().choose(request("q", 90_000_000), [batch, chat]).worker is chat

    def test_slower_workers_count_their_work_longer(self):
        slow, fast = worker("a"), worker("b")
        slow.us_per_token = 100.0
        for each in (slow, fast):
            each.take(request("r", 10, tokens=100))
        fast.take(request("s", 10, tokens=100))
        assert EdfByTier().choose(request("q", 20), [slow, fast]).worker is fast

    @given(
        st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50), st.integers(1, 99)), max_size=20), st.integers(0, 50)
    )
    def test_edf_takes_one_with_the_least_work_due(self, placed, deadline):
        workers = [worker(f"w{number}") for number in range(5)]
        model = dict.fromkeys(range(5), 0)
        for number, (at, due, tokens) in enumerate(placed):
            workers[at].take(request(f"q{number}", due, tokens))
            model[at] += tokens if due <= deadline else 0
        chosen = EdfByTier().choose(request("q", deadline), workers).worker
        assert model[workers.index(chosen)] == min(model.values())


def test_tiers_without_end_share_one_entry():
    tally = Tally()
    for number in range(2 * MAX_TIERS):
        tally.tier(f"t{number}").submitted += 1
    assert len(tally.tiers()) == MAX_TIERS + 1 and tally.tier(OTHER).submitted == MAX_TIERS


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
