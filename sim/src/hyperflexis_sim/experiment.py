"""One workload under one policy on one kind of workers: what the simulator is asked, and the rows it answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hyperflexis_sim.cluster import Cluster
from hyperflexis_sim.delays import Delays
from hyperflexis_sim.policies import policy_of
from hyperflexis_sim.prefix_rules import PrefixRules
from hyperflexis_sim.profiles import kv_bytes_per_token, worker_kinds
from hyperflexis_sim.score import scores
from hyperflexis_sim.tiers import Promise
from hyperflexis_sim.wires import WireRules
from hyperflexis_sim.workload import Workload
from hyperflexis_worker.steps.worth import WorthRules

STEP_NOISE = 0.05
DRAIN_S = 120.0

Tick = Callable[[float], None]
"""Told the simulated time, in microseconds, about once a simulated second."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """Nothing of it is changed by running it."""

    trace: str
    """What the rows call the workload."""
    workload: Workload
    """At the rate at which it is to be served."""
    promises: Mapping[str, Promise]
    profile: str
    """Of all workers, or several with `+` between them that the workers have in turn."""
    workers: int
    policy: str
    load: float = 1.0
    """What the rows say of the rate; the workload has it already."""
    seed: int = 0
    """Of step noise and of dispatchers that draw; the workload's own chance is behind it."""
    step_noise: float = STEP_NOISE
    """Relative deviation of a step's time from the model's."""
    scored_s: tuple[float, float] | None = None
    """Only what arrives from the first until before the second is scored; None = everything."""
    drain_s: float = DRAIN_S
    """How long after the last arrival the simulation goes on; who is not done by then has not attained."""
    leap: bool = True
    delays: Delays = Delays()
    slow_worker: float = 1.0
    """How much slower one of the workers is than the others."""
    slow_worker_known: bool = False
    """Whether its model says so."""
    wires: WireRules = WireRules()
    """What KV travels on, for policies that move it."""
    leaves: Sequence[tuple[float, int]] = ()
    """(seconds, worker): from then on nothing new goes there."""
    prefixes: PrefixRules = PrefixRules()
    """Where the workload names the blocks of its prompts."""
    kv_tokens: int | None = None
    """Of each worker's KV pool; None = by profile."""
    kv_share: float = 1.0
    """Of its KV pool, what each worker really has."""

    @property
    def until_s(self) -> float:
        """When the simulation stops at the latest."""
        return float(self.workload.arrival_s[-1]) + self.drain_s

    def run(self, tick: Tick | None = None) -> list[dict[str, Any]]:
        """A row per tier and one for `all`, as `scores`. Raises ValueError for an unknown policy or profile."""
        guarantees = {name: promise.guarantee for name, promise in self.promises.items() if promise.guarantee}
        policy = policy_of(self.policy, WorthRules(guarantees))
        if self.workers < 1:
            raise ValueError(f"there must be at least 1 worker, not {self.workers}")
        if policy.plan is not None and len(policy.plan.roles) > self.workers:
            raise ValueError(f"{self.policy}: {len(policy.plan.roles)} roles for {self.workers} workers")
        workers = worker_kinds(self.profile, self.workers)
        if self.slow_worker_known:
            workers[0] = replace(workers[0], model=workers[0].model.scaled(self.slow_worker))
        else:
            workers[0] = replace(workers[0], slower=self.slow_worker)
        if self.kv_tokens is not None:
            workers = [replace(kind, kv_tokens=self.kv_tokens) for kind in workers]
        if self.kv_share != 1.0:
            workers = [replace(kind, kv_tokens=int(kind.kv_tokens * self.kv_share)) for kind in workers]
        cluster = Cluster(
            workers,
            policy.dispatch(self.seed),
            policy.step,
            step_noise=self.step_noise,
            seed=self.seed,
            reserve_growth=policy.reserve_growth,
            leap=self.leap,
            delays=self.delays,
            promises=self.promises,
            plan=policy.plan,
            prefixes=self.prefixes,
            caches=bool(self.workload.prefixes),
            wires=replace(self.wires, bytes_per_token=kv_bytes_per_token(self.profile)),
            leaves=[(at_s * 1e6, worker) for at_s, worker in self.leaves],
        )
        requests = self.workload.requests(self.promises)
        cluster.run(requests, self.until_s * 1e6, tick)
        first_s, last_s = self.scored_s or (0.0, float("inf"))
        scored = [request for request in requests if first_s * 1e6 <= request.arrival_us < last_s * 1e6]
        if not scored:
            raise ValueError(f"no request of {self.trace} arrives within the scored seconds {first_s:g} to {last_s:g}")
        seconds = min(last_s, max(float(self.workload.arrival_s[-1]), 1e-6)) - first_s
        about = {
            "trace": self.trace,
            "profile": self.profile,
            "workers": self.workers,
            "load": self.load,
            "policy": self.policy,
            "seed": self.seed,
        }
        if self.leaves:
            until_us = [cluster.empty_us[worker] - at_s * 1e6 for at_s, worker in self.leaves]
            about["empty_after_s"] = max(until_us) / 1e6
        return [about | row for row in scores(scored, seconds)]
