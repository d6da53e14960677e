"""The simulated side of the fidelity bench: the very requests of a live run, on engines as that run measured them.

Nothing here is tuned: step times, their noise, what passes between two steps and the delays on the way to an engine
and back are read off the live run's own reports and logs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any

import numpy as np
from fidelity_compare import Outcome
from fidelity_live import BLOCK_TOKENS, BLOCKS, MAX_SEQUENCES, MAX_TOKENS, TIERS, LiveRun

from hyperflexis_cli.record import Record
from hyperflexis_common.step_time import StepShape, StepTimeModel
from hyperflexis_scheduler.core.dispatch_policy import POLICIES as DISPATCH
from hyperflexis_sim.cluster import Cluster
from hyperflexis_sim.delays import Delays
from hyperflexis_sim.request import FINISHED, REFUSED, SimRequest
from hyperflexis_sim.tiers import Promise
from hyperflexis_sim.worker_kind import WorkerKind
from hyperflexis_sim.workload import Workload
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.step_policy import StepPolicy

KV_TOKENS = (BLOCKS - 1) * BLOCK_TOKENS
"""One block is reserved."""
DRAIN_S = 600.0
GAUSSIAN = float(np.sqrt(np.pi / 2))
"""Deviation over mean absolute error."""
PROMISES = {tier.name: Promise.of(tier) for tier in TIERS}
STEPS: dict[str, Callable[[StepTimeModel], StepPolicy]] = {
    "hyperflexis": lambda model: SloPolicy(model, MAX_TOKENS, MAX_SEQUENCES),
    "fcfs": lambda model: ChunkedPolicy(model, MAX_TOKENS, MAX_SEQUENCES),
}


@dataclass(frozen=True, slots=True)
class Twin:
    """What a simulation is told of a live run."""

    kinds: list[WorkerKind]
    delays: Delays = field(default_factory=lambda: Delays(dispatch_us=0.0, report_us=0.0))
    step_noise: float = 0.0

    def run(self, records: Sequence[Record], policies: tuple[str, str], seed: int) -> tuple[list[SimRequest], float]:
        """The requests in order of arrival, and how many simulated seconds went by in a real one."""
        dispatch, step = policies
        cluster = Cluster(
            self.kinds,
            DISPATCH[dispatch](),
            STEPS[step],
            self.delays,
            step_noise=self.step_noise,
            seed=seed,
            promises=PROMISES,
            rebalance=True,
        )
        requests = arrivals(records).requests(PROMISES)
        for request in requests:
            request.max_tokens = request.output_tokens  # a replay asks for as many as it is to get
        began = time.perf_counter()
        cluster.run(requests, requests[-1].arrival_us + DRAIN_S * 1e6)
        return requests, cluster.now_us / 1e6 / (time.perf_counter() - began)


def arrivals(records: Sequence[Record]) -> Workload:
    """When they were really sent."""
    return Workload(
        np.array([record.sent_s for record in records]),
        np.array([record.planned.prompt_tokens for record in records]),
        np.array([record.planned.output_tokens for record in records]),
        [record.tier for record in records],
        [""] * len(records),
    )


def twins(run: LiveRun) -> dict[str, Twin]:
    """The twin, and what leads to it one measurement after the other: what each of them explains."""
    steps = [[line for line in log if line.get("took_us") and _shape(line).tokens] for log in run.logs]
    plain = [WorkerKind(model, KV_TOKENS) for model in run.models]
    reported = GAUSSIAN * fmean(run.mean_errors)
    pairs = list(zip(plain, steps, strict=True))
    shaped = [replace(kind, steps=factors(kind.model, own)) for kind, own in pairs]
    hosted = [replace(kind, host_us=host_us(own)) for kind, own in zip(shaped, steps, strict=True)]
    return {
        "as reported": Twin(plain, step_noise=reported),
        "+ measured noise": Twin(shaped),
        "+ time between steps": Twin(hosted),
        "+ delays": Twin(hosted, delays(run)),
    }


def factors(model: StepTimeModel, steps: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """Of each step: its time by the model, and what it took over that."""
    times_us = (model.predict_us(_shape(step)) for step in steps)
    return [(time_us, step["took_us"] / time_us) for time_us, step in zip(times_us, steps, strict=True)]


def host_us(steps: Sequence[dict[str, Any]]) -> float:
    """From the end of a step to the beginning of the next, where that one follows at once."""
    gaps = [b["began_us"] - a["began_us"] - a["took_us"] for a, b in zip(steps, steps[1:], strict=False) if a["busy"]]
    return fmean(gaps)


def delays(run: LiveRun) -> Delays:
    """From the client to the router, which decides who comes first at the scheduler; from there to the engine's door
    (the median); and from the engine back to the client."""
    waiting = {record.request_id: record for record in run.records}
    complete = {record.request_id: record for record in run.records if record.complete}
    submits_us: list[float] = []
    dispatches_us: list[float] = []
    firsts_us: dict[str, float] = {}
    lasts_us: dict[str, float] = {}
    for line in (line for log in run.logs for line in log):
        if "added" in line:
            record = waiting.pop(line["added"], None)  # the first time: a second try has waited elsewhere
            if record is not None:
                submits_us.append(max(line["arrival_us"] - run.began_us - record.sent_s * 1e6, 0.0))
                dispatches_us.append(line["sent_us"] - line["arrival_us"])
            continue
        made_us = line["began_us"] + line["took_us"] - run.began_us
        firsts_us |= {name: _us(complete[name].first_token_s) - made_us for name in line["first"] if name in complete}
        lasts_us |= {name: _us(complete[name].last_token_s) - made_us for name in line["last"] if name in complete}
    returns_us = [(first_us, lasts_us[name]) for name, first_us in firsts_us.items() if name in lasts_us]
    return Delays(median(dispatches_us), submits_us=submits_us, returns_us=returns_us)


def live_outcomes(records: Sequence[Record], from_s: float) -> list[Outcome]:
    return [_live(record) for record in records if record.sent_s >= from_s]


def simulated_outcomes(requests: Sequence[SimRequest], from_s: float) -> list[Outcome]:
    return [_simulated(request) for request in requests if request.arrival_us >= from_s * 1e6]


def _live(record: Record) -> Outcome:
    done = record.complete
    return Outcome(
        record.tier,
        record.attained,
        record.refused,
        record.downgraded,
        record.ttft_ms if done else None,
        record.tpot_ms if done else None,
        _us(record.last_token_s) / 1e3 - record.sent_s * 1e3 if done else None,
    )


def _simulated(request: SimRequest) -> Outcome:
    done = request.state == FINISHED
    return Outcome(
        request.tier_promised,
        request.attained,
        request.state == REFUSED,
        request.downgraded,
        (request.first_us - request.arrival_us) / 1e3 if done else None,
        request.mean_tpot_us / 1e3 if done and request.made > 1 else None,
        (request.last_us - request.arrival_us) / 1e3 if done else None,
    )


def _us(seconds: float | None) -> float:
    assert seconds is not None, "complete requests have tokens"
    return seconds * 1e6


def _shape(step: dict[str, Any]) -> StepShape:
    chunks = tuple((tokens, context) for tokens, context in step["prefill_chunks"])
    return StepShape(chunks, step["decodes"], step["decode_context_tokens"])
