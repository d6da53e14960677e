"""The rows that dispatch reads: after any history they are what a computation from scratch gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.step_time import PLATEAU_TOKENS
from hyperflexis_common.turns import ALL_US, TURNS_US
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.load_row import MOST_US
from hyperflexis_scheduler.core.loads import WorkerLoads, counts_before
from hyperflexis_scheduler.core.request import Phase

EDGES_US = (*TURNS_US, math.inf)


class Twin:
    """What one worker has said and was told, remembered plainly."""

    def __init__(self, stage: Any, name: str) -> None:
        self.stage = stage
        self.name = name
        self.incarnation = 0
        self.connect(anew=True)

    def connect(self, anew: bool) -> None:
        """A session, of a new life or of the same one."""
        if anew:
            self.incarnation += 1
            self.model = (0.0, 0.0, 20.0, 0.0, 0.0, 0.0)
        self.applied = 0
        self.charges: list[tuple[int, str, int, int, float]] = []
        self.seen = 0
        self.peer = self.stage.worker(self.name, self.incarnation, snapshot=False)
        status = [
            self.stage.status(state.request_id, state.attempt)
            for state in self.state.attempts.values()
            if not anew and state.started
        ]
        self.load = ws.WorkerLoad(waiting=len(status))
        self.peer.snapshot(*status, **{"waiting": len(status)} if status else {})

    @property
    def state(self) -> Any:
        return self.stage.core.cell.fleet.by_id[self.name]

    @property
    def here(self) -> bool:
        worker = self.stage.core.cell.fleet.by_id.get(self.name)
        return worker is not None and worker.session == self.peer.session

    def look(self) -> None:
        """Runs that have come; each costs what the model said when it was sent."""
        for message in self.peer.got[self.seen :]:
            if message.WhichOneof("message") == "run":
                tokens = message.run.prompt_tokens + message.run.base_index
                us = int(self.model[2] * tokens + self.model[3] * tokens * tokens / 2)
                state = self.stage.core.cell.book.get(message.run.request_id)
                assert state is not None
                attempt = Attempt.of(message.run.attempt)
                [note] = [note for note in state.notes if note.kind == "place" and note.attempt == attempt]
                self.charges.append((message.seq, state.request_id, tokens, us, note.numbers["turn_us"]))
        self.seen = len(self.peer.got)

    def report(self, behind: int, load: dict[str, Any] | None, model: tuple[float, ...] | None) -> None:
        newest = max((message.seq for message in self.peer.got), default=0)
        applied = max(self.applied, newest - behind)
        fields: dict[str, Any] = {"applied_seq": applied}
        if model is not None:
            names = ("c0_us", "c1_us", "c2_us", "c3_us", "c4_us", "c5_us")
            fields["step_time"] = capability_pb2.StepTimeModel(**dict(zip(names, model, strict=True)), host_us=7.0)
        self.applied = applied
        self.load = ws.WorkerLoad(**(load or {}))
        self.peer.report(load=load, **fields)
        if model is not None:
            c0_us, c1_us, c2_us, *others = model
            self.model = (c0_us + 7.0, c1_us, c2_us or 20.0, *others)

    def queued_us(self, by_us: float) -> float:
        """What has its turn by then; workers that do not say what of their queue has: all of it."""
        load = self.load
        by_turn = len(load.queued_before_us) == len(TURNS_US)
        told = [*load.queued_before_us, load.queued_prefill_us]
        all_us = load.queued_prefill_us or load.queued_prefill_tokens * self.model[2]
        reported_us = told[EDGES_US.index(by_us)] if by_turn and load.queued_prefill_us else all_us
        charges = [charge for charge in self.charges if charge[0] > self.applied]
        return reported_us + sum(charge[3] for charge in charges if not by_turn or charge[4] <= by_us)

    def row(self) -> list[float]:
        load = self.load
        charges = [charge for charge in self.charges if charge[0] > self.applied]
        states = self.stage.core.cell.book._requests.values()
        placed = [s for s in states if s.phase is Phase.PLACED and s.worker.key.worker_id == self.name]
        pace = load.pace or 1.0
        tpots_us = (s.tpot_us for s in placed if s.decoding)
        tightest_us = min((tpot_us for tpot_us in tpots_us if tpot_us > pace * self.model[0]), default=math.inf)
        return [
            max(load.waiting + load.running + len(charges), len(placed)),
            load.queued_prefill_tokens + sum(charge[2] for charge in charges),
            load.prefill_share or 1.0,
            load.running,
            load.decode_context_tokens,
            (load.kv.total_blocks - load.kv.free_blocks) * load.kv.block_tokens,
            load.kv.total_blocks * load.kv.block_tokens,
            *self.model,
            max(self.model[0] + PLATEAU_TOKENS * (self.model[1] - self.model[2]), 0.0),
            self.model[2] + self.model[5],
            columns.MIXED,
            tightest_us,
            pace,
            0.0,
            0.0,
            *(self.queued_us(edge_us) for edge_us in EDGES_US),
        ]


def check(stage: Any, twins: list[Twin]) -> None:
    fleet = stage.core.cell.fleet
    here = {twin.name: twin for twin in twins if twin.here}
    assert len({worker.slot for worker in fleet}) == len(list(fleet))
    assert fleet.loads.column(0).size - len(fleet.loads._free) == len(list(fleet))
    for worker in fleet:
        if worker.key.worker_id in here:
            row = [fleet.loads.get(worker.slot, field) for field in range(columns.FIELDS)]
            assert row == here[worker.key.worker_id].row()
    for pool in fleet.pools.values():
        assert pool.slots.tolist() == [worker.slot for worker in pool.eligible]
        assert [pool.at[slot] for slot in pool.slots.tolist()] == pool.eligible


numbers = st.integers(0, 1_000)
load_fields = st.fixed_dictionaries(
    {"steps": st.just(0)},
    optional={
        "waiting": numbers,
        "queued_prefill_tokens": numbers,
        "queued_prefill_us": numbers,
        "queued_before_us": st.just([]) | st.lists(numbers, min_size=6, max_size=7).map(sorted),
        "decode_context_tokens": numbers,
        "prefill_share": st.sampled_from([0.25, 0.5, 1.0]),
        "pace": st.sampled_from([0.5, 1.0, 4.0]),
        "kv": st.builds(
            capability_pb2.KvPoolStats,
            total_blocks=st.just(90),
            free_blocks=st.integers(0, 90),
            block_tokens=st.just(16),
        ),
    },
)
models = st.tuples(st.sampled_from([0.0, 30.0, 20_000.0]), *[st.sampled_from([0.0, 0.5, 30.0])] * 5)
"""Of 20 ms and at four times that, a step takes longer than the TPOT of all that is submitted here."""
events = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 500), st.none()),
    st.tuples(st.just("report"), st.integers(0, 3), st.tuples(load_fields, models | st.none())),
    st.tuples(
        st.sampled_from(["started", "first_token", "gave_up", "lost", "finished", "revoked"]), st.none(), st.none()
    ),
    st.tuples(st.sampled_from(["back", "anew", "left", "drain", "cancel"]), st.none(), st.none()),
)


@settings(max_examples=200, deadline=None)
@given(story=st.lists(st.tuples(st.integers(0, 2), events), max_size=40))
def test_rows_are_what_a_computation_from_scratch_gives(make_stage, story):
    stage = make_stage()
    twins = [Twin(stage, f"w{number}") for number in range(3)]
    router = stage.router()
    for count, (number, (what, value, more)) in enumerate(story):
        twin = twins[number]
        run = next(reversed(twin.state.attempts.values()), None) if twin.here else None
        if what == "submit":
            router.submit(f"q{count}", prompt_tokens=value)
        elif what == "report" and twin.here:
            twin.report(value, *more)
        elif what in ("back", "anew"):
            twin.connect(anew=what == "anew" or twin.name not in stage.core.cell.fleet.by_id)
        elif what == "left":
            twin.peer.disconnect()
            alive = [other.peer for other in twins if other is not twin and other.here]
            stage.tick(700, router, *alive)
        elif what == "drain":
            stage.apply(action_id=str(count), worker_id=twin.name, drain=ws.Drain())
        elif what == "cancel" and run is not None:
            router.cancel(run.request_id)
        elif run is not None and what in ("started", "first_token", "gave_up", "lost", "finished", "revoked"):
            kind = ws.RequestUpdate.Kind.Value(f"KIND_{what.upper()}")
            update = ws.RequestUpdate(request_id=run.request_id, attempt=run.attempt.proto(), kind=kind)
            twin.peer.report(update, applied_seq=twin.applied)
            twin.load = ws.WorkerLoad()
        for each in twins:
            each.look()
        check(stage, twins)


class TestRows:
    def test_slots_are_used_again_and_the_table_grows(self):
        loads = WorkerLoads(2)
        slots = [loads.open() for _ in range(5)]
        assert sorted(slots) == [0, 1, 2, 3, 4]
        loads.set(slots[1], columns.REQUESTS, 9)
        loads.close(slots[1])
        assert loads.open() == slots[1] and loads.get(slots[1], columns.REQUESTS) == 0
        assert loads.of(columns.SHARE, np.array(slots)).tolist() == [1.0] * 5

    @given(
        st.lists(st.tuples(st.floats(0, 2 * ALL_US), st.integers(0, 1_000)), max_size=12),
        st.floats(-1e6, 3 * ALL_US),
    )
    def test_what_has_its_turn_before_is_exact_at_the_edges_and_in_between_elsewhere(self, queue, turn_us):
        loads = WorkerLoads(1)
        slot = loads.open()
        loads.queue(slot, sum(us * counts_before(turn) for turn, us in queue))
        view = loads.view(np.array([slot]))

        def before(by_us):
            return float(view.queued_before_us(np.array([by_us]))[0])

        def exact(by_us):
            return sum(us for turn, us in queue if turn <= by_us)

        assert [before(edge) for edge in TURNS_US] == pytest.approx([exact(edge) for edge in TURNS_US])
        low = max((edge for edge in TURNS_US if edge <= turn_us), default=0.0)
        high = next((edge for edge in TURNS_US if edge >= turn_us), math.inf)
        assert exact(low) * (low > 0) - 1e-6 <= before(turn_us) <= exact(high) + 1e-6
        assert before(ALL_US) == sum(us for _, us in queue)

    def test_an_order_that_is_not_told_puts_everybody_before(self):
        loads = WorkerLoads(1)
        slot = loads.open()
        loads.queue(slot, 700.0)
        assert loads.view(np.array([slot])).queued_before_us(np.array([-5.0])).tolist() == [700.0]

    @pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e300, -1.0])
    def test_a_model_that_cannot_be_changes_nothing(self, stage, wrong):
        worker = stage.worker()
        worker.report(step_time=capability_pb2.StepTimeModel(c0_us=5.0, c2_us=wrong))
        loads = stage.core.cell.fleet.loads
        slot = stage.core.cell.fleet.by_id["w1"].slot
        assert (loads.get(slot, columns.C0), loads.get(slot, columns.C2)) == (0.0, 20.0)

    def test_a_queue_that_is_said_to_be_endless_does_no_harm(self, stage):
        worker, router = stage.worker("w1"), stage.router()
        before_us = [2**64 - 1] * 7
        worker.report(load={"queued_prefill_us": 2**64 - 1, "queued_before_us": before_us})
        worker.report(load={"queued_prefill_us": 2**64 - 1}, step_time=capability_pb2.StepTimeModel(c2_us=1e14))
        router.submit("q")
        assert router.last("placed").worker.worker_id == "w1"
        fleet = stage.core.cell.fleet
        assert fleet.loads.get(fleet.by_id["w1"].slot, columns.QUEUED_US) == 2 * MOST_US

    @pytest.mark.parametrize(("told", "counts"), [(12.0, 10.0), (0.01, 0.1), (float("nan"), 1.0), (0.0, 1.0)])
    def test_a_pace_is_bounded_and_one_that_cannot_be_counts_as_one(self, stage, told, counts):
        stage.worker().report(load={"pace": told})
        fleet = stage.core.cell.fleet
        assert fleet.loads.get(fleet.by_id["w1"].slot, columns.PACE) == counts

    @pytest.mark.parametrize("share", [float("nan"), -0.5, 0.0, 1.5])
    def test_a_share_that_cannot_be_counts_as_one(self, stage, share):
        worker = stage.worker()
        worker.report(load={"prefill_share": share})
        fleet = stage.core.cell.fleet
        assert fleet.loads.get(fleet.by_id["w1"].slot, columns.SHARE) == 1.0
